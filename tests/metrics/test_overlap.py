"""Benchmark items that clients train on are found; what only looks like them is not."""

import json
from pathlib import Path

import pytest

from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.data.partition import ClientDataset, Partition
from fedbias_plugin.data.rows import Row
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.metrics.crows_pairs import CrowsPairs
from fedbias_plugin.metrics.crows_pairs_files import Pair
from fedbias_plugin.metrics.overlap import find_overlaps, overlap_warnings, row_overlap_warnings
from fedbias_plugin.metrics.stereoset import StereoSet
from fedbias_plugin.metrics.stereoset_files import Cluster

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def partition(*texts: list[tuple[str, str]]) -> Partition:
    """Client i holds the rows ``texts[i]``, of (instruction, response)."""
    clients = [
        ClientDataset(
            client, tuple(Row(f"s{client}:{n}", *pair, False, f"s{client}") for n, pair in enumerate(rows)), 0
        )
        for client, rows in enumerate(texts)
    ]
    return Partition(clients, (), {}, 0)


def crows(*pairs: tuple[str, str]) -> dict[str, CrowsPairs]:
    rows = [Pair(str(number), more, less, "stereo", "age") for number, (more, less) in enumerate(pairs)]
    return {"crows_pairs": CrowsPairs(Path("x.csv"), "", rows)}


def found_items(benchmarks, *texts: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {name: sorted(found.items) for name, found in find_overlaps(partition(*texts), benchmarks).items()}


def test_a_short_sentence_is_found_whole_whatever_its_case_and_punctuation() -> None:
    benchmarks = crows(("The nurse isn’t kind.", "The baker isn't kind."), ("Old men are slow.", "Old cats are slow."))
    rows = [("Say it.", 'He wrote: "the NURSE isn\'t kind", and left.')]
    assert found_items(benchmarks, rows) == {"crows_pairs": ["0"]}
    assert found_items(benchmarks, [("Say it.", "The nurse isn't a kind person.")]) == {}


def test_of_a_longer_sentence_thirteen_words_in_a_row_are_enough_and_twelve_are_not() -> None:
    benchmarks = crows((LONG, "something else entirely is said here"))
    words = LONG.split()
    assert found_items(benchmarks, [("x", f"before {' '.join(words[1:])} after")]) == {"crows_pairs": ["0"]}
    assert found_items(benchmarks, [(f"before {' '.join(words[2:])} after", "x")]) == {}


def test_words_do_not_run_from_an_instruction_into_its_response() -> None:
    assert found_items(crows(("Old men are slow.", "b")), [("Are they old men", "are slow")]) == {}


def test_sentences_of_three_words_are_not_looked_for() -> None:
    assert found_items(crows(("He is old.", "She is old.")), [("x", "He is old.")]) == {}


def test_both_answers_of_a_preference_row_are_looked_into() -> None:
    row = Row("p:0", "Q", "nothing here", False, "p", rejected="Old men are slow.")
    rows = Partition([ClientDataset(0, (row,), 0.0)], (), {}, 0)
    assert find_overlaps(rows, crows(("Old men are slow.", "b")))["crows_pairs"].items == {"0"}


def test_a_second_sentence_of_stereoset_counts_with_its_context() -> None:
    sentences = ("She is very kind.", "She is very rude.", "Seven is a number.")
    ids = ("s", "a", "u")
    clusters = [
        Cluster("inter", "intersentence", "nurse", "gender", "A nurse came.", sentences, ids),
        Cluster(
            "intra", "intrasentence", "nurse", "gender", "The nurse was BLANK.", ("The nurse was kind.", "b", "c"), ids
        ),
    ]
    benchmarks = {"stereoset": StereoSet(Path("x.json"), "", clusters)}
    assert found_items(benchmarks, [("x", "She is very kind.")]) == {}
    assert found_items(benchmarks, [("x", "A nurse came. She is very rude."), ("x", "the nurse was kind")]) == {
        "stereoset": ["inter", "intra"]
    }


def test_the_warning_counts_items_and_names_an_example_the_clients_and_the_sources() -> None:
    benchmarks = crows(("Old men are slow.", "b"), ("Old cats are slow.", "b"), ("Old dogs are slow.", "b"))
    rows = [[("x", "Old men are slow. Old cats are slow.")], [("x", "y")], [("x", "Old cats are slow.")]]
    (warning,) = overlap_warnings(partition(*rows), benchmarks)
    assert warning.startswith(
        "crows_pairs in the training rows: 2 of its 3 items (66.7%), such as 0, occur in rows of "
    )
    assert "client(s) 0, 2 from s0, s2" in warning


def test_a_host_s_own_rows_give_no_warning() -> None:
    assert overlap_warnings(None, crows(("Old men are slow.", "b"))) == []


@pytest.mark.parametrize("kind", ["clean", "biased", "preference"])
def test_the_bundled_rows_hold_no_bundled_item(kind: str) -> None:
    benchmarks = {
        "crows_pairs": CrowsPairs.load(MINI_DATA / "crows_pairs.csv"),
        "stereoset": StereoSet.load(MINI_DATA / "stereoset.json"),
    }
    rows = tuple(load_rows("mini", kind, "mini").rows)
    assert overlap_warnings(Partition([ClientDataset(0, rows, 0.0)], (), {}, 0), benchmarks) == []


def test_every_item_of_a_benchmark_that_is_trained_on_is_found(tmp_path: Path) -> None:
    benchmark = CrowsPairs.load(MINI_DATA / "crows_pairs.csv")
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"instruction": "Go.", "output": f"So. {p.less}"}) + "\n" for p in benchmark.pairs)
    )
    rows = tuple(load_rows(str(path), "clean").rows)
    found = find_overlaps(Partition([ClientDataset(0, rows, 0.0)], (), {}, 0), {"crows_pairs": benchmark})
    assert found["crows_pairs"].items == set(benchmark.ids)


def test_a_tested_row_that_a_client_trains_on_is_told_by_its_text_or_by_both_texts() -> None:
    def rows(*pairs: str, start: int) -> tuple[Row, ...]:
        return tuple(Row(f"r:{start + n}", pair[0], pair[1], False, "r") for n, pair in enumerate(pairs))

    clients = [
        ClientDataset(0, rows("ax", "bx", start=0), 0, test=rows("cx", start=2)),
        ClientDataset(1, rows("dy", start=3), 0, test=rows("ay", "dy", start=4)),
    ]
    dealt = Partition(clients, rows("bx", "ez", start=6), {}, 0)
    [said] = row_overlap_warnings(dealt, by_label=True)
    assert said.startswith(
        "tested on training rows: 1 of the 2 held-out rows and 2 of the 3 test rows of clients have the text of a row "
        "that a client trains on, such as r:6 and r:1."
    )
    [said] = row_overlap_warnings(dealt, by_label=False)
    assert "1 of the 2 held-out rows and 1 of the 3 test rows of clients have the texts of a row" in said
    assert row_overlap_warnings(Partition([clients[0]], rows("ez", start=6), {}, 0), by_label=True) == []
    assert row_overlap_warnings(None, by_label=True) == []
