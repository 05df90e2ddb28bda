"""Plans against their meaning: every token once, every text found again, every mask an ancestor relation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.scoring.prefix_tree import build_plan, make_batch, plan_batches

TEXTS = [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 3], [0, 6], [0, 1, 2, 3, 7]]
STARTS = [1, 2, 1, 1, 3]
some_texts = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=8).flatmap(
        lambda ids: st.tuples(st.just([0, *ids]), st.integers(1, len(ids)))
    ),
    min_size=1,
    max_size=12,
)


def path_to(plan, pack, node):
    """Ids from the root to a node, by walking up: the parent is the last node before it that is one less deep."""
    start = plan.pack_starts[pack]
    ids = []
    depth = plan.depths[start + node]
    for position in range(node, -1, -1):
        if plan.depths[start + position] == depth:
            ids.insert(0, int(plan.ids[start + position]))
            depth -= 1
    return ids


@given(some_texts, st.sampled_from([None, 1, 5, 9, 100]))
def test_every_scored_token_is_predicted_from_exactly_the_tokens_before_it(drawn, pack_tokens):
    texts, starts = [text for text, _ in drawn], [start for _, start in drawn]
    plan = build_plan(texts, starts, pack_tokens)
    for index, (text, start) in enumerate(drawn):
        found = plan.text_predictions[plan.text_starts[index] : plan.text_starts[index + 1]]
        assert plan.targets[found].tolist() == text[start:]
        pack = plan.text_packs[index]
        before = [path_to(plan, pack, node) for node in plan.parents[found]]
        assert before == [text[:position] for position in range(start, len(text))]
    assert plan.lengths.tolist() == [len(text) for text in texts]
    assert plan.largest_ids.tolist() == [max(text) for text in texts]


@given(some_texts)
def test_a_node_sees_its_ancestors_and_itself(drawn):
    plan = build_plan([text for text, _ in drawn], [start for _, start in drawn], 100)
    batch = make_batch(plan, [0], 9)
    paths = [path_to(plan, 0, node) for node in range(len(plan.ids))]
    for node, path in enumerate(paths):
        # No two nodes of a tree have the same path.
        assert [paths[seen] for seen in np.flatnonzero(batch.visible[0, node])] == [
            path[: i + 1] for i in range(len(path))
        ]


def test_shared_beginnings_are_there_once_and_last_tokens_not_at_all():
    plan = build_plan(TEXTS, STARTS, 100)
    # 0 1 2 3 (of the longest text), 5 (of the third); the last tokens 3, 4, 3, 6 and 7 are only predicted.
    assert plan.ids.tolist() == [0, 1, 2, 3, 5]
    assert plan.depths.tolist() == [0, 1, 2, 3, 2]
    assert plan.ends.tolist() == [5, 5, 4, 4, 5]
    assert plan.is_tree


def test_a_prediction_that_several_texts_make_is_made_once():
    plan = build_plan([[0, 1, 2], [0, 1, 2], [0, 1, 3]], [1, 1, 2], 100)
    assert sorted(zip(plan.parents.tolist(), plan.targets.tolist(), strict=True)) == [(0, 1), (1, 2), (1, 3)]


def test_a_pack_holds_as_many_nodes_as_it_may_and_a_longer_text_is_its_own():
    plan = build_plan([*TEXTS, [9] * 30], [*STARTS, 1], 4)
    assert plan.pack_sizes.tolist() == [4, 3, 29]
    assert plan.text_packs.tolist() == [0, 0, 1, 1, 0, 2]


def test_a_plain_plan_has_one_text_a_pack():
    plan = build_plan(TEXTS, STARTS, None)
    assert sorted(plan.text_packs.tolist()) == [0, 1, 2, 3, 4]
    assert plan.pack_sizes[plan.text_packs].tolist() == [len(text) - 1 for text in TEXTS]
    assert not plan.is_tree


def test_a_batch_is_padded_with_nodes_that_see_themselves_only():
    plan = build_plan(TEXTS, STARTS, None)
    packs = np.argsort(plan.pack_sizes)[[0, -1]].tolist()  # "0 6" and the longest
    batch = make_batch(plan, packs, 8)
    assert batch.ids.tolist() == [[0, 8, 8, 8], [0, 1, 2, 3]]
    assert batch.visible[0].tolist() == np.eye(4, dtype=bool).tolist()
    assert batch.visible[1].tolist() == np.tril(np.ones((4, 4), bool)).tolist()
    # The longest text is scored from its fourth token on: predicted from the nodes at 2 and 3 of the second row.
    assert batch.nodes.tolist() == [0, 4 + 2, 4 + 3]
    assert batch.targets.tolist() == [6, 3, 7]


@given(some_texts, st.integers(1, 40), st.integers(1, 20))
def test_batches_hold_every_pack_once_within_the_limits(drawn, max_tokens, max_nodes):
    plan = build_plan([text for text, _ in drawn], [start for _, start in drawn], 6)
    batches = plan_batches(plan, max_tokens, max_nodes)
    assert sorted(pack for packs in batches for pack in packs) == list(range(len(plan.pack_sizes)))
    for packs in batches:
        batch = make_batch(plan, packs, 0)
        assert len(packs) == 1 or (batch.ids.size <= max_tokens and len(batch.nodes) <= max_nodes)


def test_the_text_of_a_prediction_can_be_named():
    plan = build_plan(TEXTS, STARTS, 100)
    for index in range(len(TEXTS)):
        last = plan.text_predictions[plan.text_starts[index + 1] - 1]
        assert TEXTS[plan.text_of(int(last))] == TEXTS[index]


@pytest.mark.parametrize("pack_tokens", [None, 3, 100])
def test_the_order_of_the_texts_does_not_change_the_trees(pack_tokens):
    plan, other = build_plan(TEXTS, STARTS, pack_tokens), build_plan(TEXTS[::-1], STARTS[::-1], pack_tokens)
    assert plan.ids.tolist() == other.ids.tolist()
    assert plan.text_packs.tolist() == other.text_packs.tolist()[::-1]
