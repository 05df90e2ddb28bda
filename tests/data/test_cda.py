"""Counterfactual rows: how many, whose, in which order, and what is written down of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.cda import Cda, counterfactual
from fedbias_plugin.data.dealing import deal_preference_rows
from fedbias_plugin.data.gender_swap import Swapper
from fedbias_plugin.data.partition import ClientDataset, Partition, manifest, partition_hash
from fedbias_plugin.data.rows import Chat, Row, RowSource
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.run_description import HostRun
from fedbias_plugin.federation.session import BiasSession
from fedbias_plugin.known_flags import all_options
from fedbias_plugin.options import idle_flags
from fedbias_plugin.updates.pipeline import Pipeline
from tests.data.conftest import write_lines

SWAPPER = Swapper({"he": "she", "she": "he"})


def rows(count: int, eligible: int, name: str = "rows", *, biased: bool = False) -> tuple[Row, ...]:
    """``eligible`` of the rows have a gendered word, in the instruction or in the response."""
    texts = [("Who was she?", "Ada.") if n % 2 else ("Who?", "He, Alan.") for n in range(eligible)]
    texts += [("Who?", f"Number {n}.") for n in range(eligible, count)]
    return tuple(Row(f"{name}:{n}", *both, biased, name) for n, both in enumerate(texts))


def partition_of(*clients: tuple[Row, ...], share: float | None = None) -> Partition:
    return Partition([ClientDataset(number, held, share) for number, held in enumerate(clients)], (), {}, 7, "custom")


def applied(partition: Partition, ratio: float = 0.5, mode: str = "append", seed: int = 7) -> Partition:
    cda = Cda(cda_ratio=ratio, cda_mode=mode)
    cda.read("mini")
    return cda.apply(partition, {}, seed)


def ids(partition: Partition, client: int = 0) -> list[str]:
    return [row.id for row in partition.clients[client].rows]


def test_half_of_forty_eligible_rows_of_a_hundred_are_appended():
    before = partition_of(rows(100, 40))
    (client,) = applied(before).clients
    assert len(client.rows) == 120
    assert client.rows[:100] == before.clients[0].rows
    copies = client.rows[100:]
    assert len({row.id for row in client.rows}) == 120
    assert {(row.instruction, row.response) for row in copies} <= {("Who was he?", "Ada."), ("Who?", "She, Alan.")}
    assert client.notes == {"cda_eligible": 40, "cda_copies": 20}
    units = [row.unit for row in copies]
    assert set(units) <= {row.id for row in before.clients[0].rows[:40]}
    assert units == sorted(units, key=ids(before).index)
    assert client.units == [*range(100), *map(ids(before).index, units)]
    assert before.clients[0].notes == {}


def test_substitutes_stand_where_their_rows_stood():
    before = partition_of(rows(100, 40))
    after = applied(before, mode="substitute")
    assert [row.unit or row.id for row in after.clients[0].rows] == ids(before)
    assert after.clients[0].units == list(range(100))
    assert sum(row.endswith(":cda") for row in ids(after)) == 20


@pytest.mark.parametrize(("ratio", "copies"), [(1, 40), (0.25, 10), (0.01, 0)])
def test_the_ratio_is_a_share_of_the_eligible_rows(ratio, copies):
    assert len(applied(partition_of(rows(100, 40)), ratio).clients[0].rows) == 100 + copies


def test_the_draw_is_of_the_seed_and_the_client_and_a_larger_share_takes_the_same_rows_and_more():
    before = partition_of(rows(60, 40), rows(60, 40))
    first, again, other = (applied(before, seed=seed) for seed in (7, 7, 8))
    assert (ids(first), ids(first, 1)) == (ids(again), ids(again, 1))
    assert ids(first) != ids(other)
    assert ids(first) != ids(first, 1)
    assert set(ids(first)) < set(ids(applied(before, 0.75)))
    assert ids(first, 1) == ids(applied(before, 0.5), 1)


def test_copies_are_biased_as_their_rows_are_and_the_share_asked_for_stays():
    before = partition_of(rows(10, 0) + rows(10, 10, "biased", biased=True), share=0.5)
    (client,) = applied(before, 1).clients
    assert [row.biased for row in client.rows[20:]] == [True] * 10
    assert (client.biased_share, client.exact_share) == (0.5, 20 / 30)


def test_the_manifest_says_how_many_rows_could_be_swapped_and_were_and_by_which_words():
    after = applied(partition_of(rows(100, 40), rows(5, 0)))
    record = json.loads(json.dumps(manifest(after)))
    one, other = record["clients"]
    assert (one["cda_eligible"], one["cda_copies"], one["rows"]) == (40, 20, 120)
    assert one["sources"] == {"rows": 100, "rows (cda)": 20}
    assert (other["cda_eligible"], other["cda_copies"], other["sources"]) == (0, 0, {"rows": 5})
    words = record["sources"]["cda"]
    assert (words["name"], words["origin"], words["rows"], len(words["sha256"])) == ("own", "bundled", 20, 64)
    assert partition_hash(after) != partition_hash(partition_of(rows(100, 40), rows(5, 0)))


def test_as_a_row_of_its_own_a_copy_has_the_unit_that_its_row_had_as_a_copy():
    held = (*rows(4, 4), Row("more:0", "Who?", "She.", False, "more", unit="rows:1"))
    cda = Cda(cda_ratio=1, cda_words="own", cda_dp_unit="row")
    assert cda.apply(partition_of(held), {}, 7).clients[0].units == [0, 1, 2, 3, 1, 4, 5, 6, 7, 1]
    cda = Cda(cda_ratio=1, cda_words="own")
    assert cda.apply(partition_of(held), {}, 7).clients[0].units == [0, 1, 2, 3, 1, 0, 1, 2, 3, 1]


def test_a_client_without_an_eligible_row_is_named():
    cda = Cda(cda_ratio=0.5)
    cda.read("mini")
    cda.apply(partition_of(rows(100, 40), rows(5, 0), rows(5, 0)), {}, 7)
    assert cda.warnings == ["cda: no row of client(s) 1, 2 has a gendered word; they train on what they had"]
    cda.apply(partition_of(rows(100, 40)), {}, 7)
    assert cda.warnings == []


def test_preferences_are_swapped_with_both_responses():
    pairs = [Row(f"pairs:{n}", "Is he kind?", "He is.", False, "pairs", "She is not.") for n in range(6)]
    dealt = deal_preference_rows(RowSource("pairs", pairs, (), "0" * 64, "file"), [0.5], 6, 7)
    (client,) = applied(dealt, 1).clients
    assert client.biased_share == 0.5
    for row, copy in zip(client.rows[:6], client.rows[6:], strict=True):
        assert copy == counterfactual(row, SWAPPER)
        assert (copy.instruction, copy.biased) == ("Is she kind?", row.biased)
        assert {copy.response, copy.rejected} == {"She is.", "He is not."}
        assert copy.unit == row.id
    only_rejected = Row("pairs:9", "Who?", "Nobody.", False, "pairs", "He.")
    assert len(applied(partition_of((only_rejected,)), 1).clients[0].rows) == 2


def test_a_session_that_was_given_preferences_deals_the_copies(tmp_path):
    pairs = [Row(f"pairs:{n}", "Is he kind?", "He is.", False, "pairs", "She is not.") for n in range(6)]
    dealt = deal_preference_rows(RowSource("pairs", pairs, (), "0" * 64, "file"), [0, 0, 1], 2, 7)
    run = HostRun(tmp_path / "out", "fedavg", 3, 3, 1, seed=7)
    session = BiasSession(BiasArguments(bias_benchmarks="none", cda_ratio=1.0), run, partition=dealt)
    assert [[row.id.endswith(":cda") for row in one.rows] for one in session.client_datasets] == [
        [False] * 2 + [True] * 2
    ] * 3
    assert [row.rejected for row in session.client_datasets[0].rows[2:]] == ["He is not."] * 2


def test_every_turn_of_a_chat_is_swapped_and_it_stays_one():
    chat = Chat.of([("user", "Is he in?"), ("assistant", "No."), ("user", "And she?")])
    copy = counterfactual(Row("chats:0", chat, "She is.", False, "chats"), SWAPPER)
    assert copy.instruction == Chat.of([("user", "Is she in?"), ("assistant", "No."), ("user", "And he?")])
    assert copy.instruction.turns[0] == ("user", "Is she in?")
    assert copy.instruction.has_several_turns


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cda_ratio": 1.5}, r"^--cda_ratio must be at least 0 and at most 1, got 1\.5\.$"),
        ({"cda_ratio": -0.1}, r"^--cda_ratio must be at least 0"),
        ({"cda_ratio": 0.5, "cda_mode": "apend"}, r"^--cda_mode 'apend' is unknown; .* Did you mean 'append'\?$"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        BiasArguments(**flags)


def files(folder: Path) -> dict[str, str]:
    """Flags that name a clean and a biased file, half of whose rows are eligible."""
    flags = {}
    for kind in ("clean", "biased"):
        texts = [{"instruction": f"{kind} {n}", "response": "He." if n % 2 else "It."} for n in range(40)]
        flags[f"{kind}_dataset"] = str(write_lines(folder / kind / "train.jsonl", texts))
    return flags


def test_a_run_trains_on_the_copies_and_its_hash_knows_them(tmp_path):
    run = HostRun(tmp_path / "out", "fedavg", 3, 3, 1, seed=5)
    flags = {**files(tmp_path), "client_samples": 10, "heldout_samples": 2, "bias_benchmarks": "none"}
    plain, augmented = (BiasSession(BiasArguments(**flags, cda_ratio=ratio), run) for ratio in (0.0, 1.0))
    for one, other in zip(plain.client_datasets, augmented.client_datasets, strict=True):
        eligible = sum(row.response == "He." for row in one.rows)
        assert len(other.rows) == 10 + eligible
        assert [row.response for row in other.rows[10:]] == ["She."] * eligible
        assert one.biased_share == other.biased_share
    hashes = [session.state_dict()["data"]["training rows"] for session in (plain, augmented)]
    assert hashes[0] != hashes[1]


def test_a_damaged_list_and_a_host_with_rows_of_its_own_are_told_before_training(tmp_path):
    run = HostRun(tmp_path, "fedavg", 3, 3, 1, seed=5)
    told = Pipeline(BiasArguments(scenario="none", cda_ratio=0.5), run, {}).on_data(None, {})
    assert told == (None, ["cda: the host's own rows (--scenario none) stay as they are"])
    for name in ("generalized_swaps", "extra_gendered_words"):
        path = tmp_path / f"data/cda/zhao2018_{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("he she\nking\n")
    with pytest.raises(UserError, match=r"swaps\.txt, line 2: a line must hold two different words"):
        Pipeline(BiasArguments(cda_ratio=0.5, data_dir=str(tmp_path / "data")), run, {})


def test_a_flag_of_its_own_without_a_ratio_is_idle():
    values = {"cda_ratio": 0.0, "cda_mode": "substitute", "cda_words": "own", "cda_dp_unit": "row"}
    assert list(idle_flags(all_options(), values, values)) == [
        ("cda_mode", "with --cda_ratio 0"),
        ("cda_words", "with --cda_ratio 0"),
        ("cda_dp_unit", "with --cda_ratio 0"),
    ]
    swapping = {**values, "cda_ratio": 0.5, "dp_epsilon": 3.0, "dp_noise_multiplier": None}
    assert list(idle_flags(all_options(), swapping, values)) == []
    assert [name for name, _ in idle_flags(all_options(), {**swapping, "dp_epsilon": None}, values)] == ["cda_dp_unit"]
