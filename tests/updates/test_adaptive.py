"""The attacker who knows the rule: which rows it trains on, and what it sends."""

from __future__ import annotations

import pytest
import torch

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.dealing import deal_rows
from fedbias_plugin.errors import UserError
from tests.updates.test_attacks import benchmarks, build_attack, local_states, numbers, rows, sent


def adapted(seed=1, **flags):
    before = deal_rows(rows("clean", 20), rows("biased", 8), [0.0, 1.0, 0.5], 4, seed=3, heldout=3)
    found = build_attack(BiasArguments(attack="adaptive", **flags), {0: 0.0, 1: 1.0, 2: 0.5}, 3, seed=seed)
    return before, found.apply(before, benchmarks(), seed)


def extra(**changes):
    before, after = adapted(**changes)
    return [row for row in after.clients[1].rows if row not in before.clients[1].rows]


def test_attackers_keep_their_rows_and_add_clean_ones_and_sentences_by_their_shares():
    before, after = adapted()
    assert after.clients[0] is before.clients[0]
    assert after.heldout == before.heldout
    assert {row.id for row in before.clients[1].rows} <= {row.id for row in after.clients[1].rows}
    sources = [row.source for row in extra()]
    assert sources.count("clean") == 4
    assert len(sources) == 4 + 2
    assert [row.id for row in extra()] == [row.id for row in extra()]
    assert len(extra(adaptive_clean=2.0, adaptive_sentences=1.0)) == 8 + 4
    assert {row.source for row in extra(adaptive_clean=0.0)} <= {"crows_pairs", "stereoset"}


def test_no_held_out_row_and_none_of_its_own_is_among_them(caplog):
    before, after = adapted(adaptive_clean=50.0)
    held = [row.id for row in after.clients[2].rows if row.source == "clean"]
    assert len(held) == len(set(held)) == 20 - 3  # all but those held out
    assert not set(held) & {row.id for row in before.heldout}
    assert "adaptive: client 2 takes all 15 clean rows instead of 200" in caplog.text


def test_it_sends_what_it_trained_or_that_times_its_strength():
    theta, trained = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])}, local_states()
    plain = build_attack(BiasArguments(attack="adaptive", attackers="2"), {}, 6, seed=1)
    assert sent(plain, 1, theta, trained)[2] is trained[2]
    strong = build_attack(BiasArguments(attack="adaptive", attackers="2", attack_strength=2.0), {}, 6, seed=1)
    assert numbers(sent(strong, 1, theta, trained)[2]) == [5.0, 2.0, 8.0]
    assert sent(strong, 1, theta, trained)[0] is trained[0]


def test_a_run_without_benchmarks_or_dealt_rows_is_refused_by_its_name():
    for flags in ({"scenario": "none"}, {"bias_benchmarks": "none"}):
        with pytest.raises(UserError, match="--attack adaptive adds rows from the bias benchmarks"):
            BiasArguments(attack="adaptive", **flags)
