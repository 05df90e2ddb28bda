"""``metrics.jsonl`` of somebody else's run: rounds and a comparison, or a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.errors import UserError, printable
from fedbias_plugin.study.compare import compare
from fedbias_plugin.tracking.jsonl import read_rounds
from tests.hostile_data.generators import cases, damaged, lines_bytes, outcome, texts, values


def whole_round(number: int) -> dict[str, Any]:
    """A round as a run writes it."""
    crows = {"score": 51.0, "ci95": [48.0, 54.0], "n": 100, "items": "report", "ids_hash": "x"}
    stereo = {"ss": 52.0, "lms": 80.0, "icat": 77.0, "ci95": [50.0, 54.0], "lms_ci95": [1.0, 2.0], "n": 90}
    client = {"poisoned_share": 1.0, "rows": 8, "train_loss": 1.5, "weight": 1.0, "bias_score": 2.0}
    return {
        "round": number,
        "global": {"crows_pairs": crows, "stereoset": stereo, "bias_score": 1.5, "heldout_loss": {"loss": 1.0, "n": 4}},
        "clients": {"0": client} if number else {},
        "aggregation": "bama",
        "warnings": [],
        "settings": {"fed_alg": "fedavg", "seed": 3},
    }


@st.composite
def rounds(draw: st.DrawFn) -> list[Any]:
    """Up to three rounds, some with a value replaced somewhere."""
    found: list[Any] = [whole_round(number) for number in range(draw(st.integers(0, 3)))]
    for record in found:
        if draw(st.integers(0, 2)) == 0:
            places = [record, record["global"], record["global"]["crows_pairs"], record["global"]["stereoset"]]
            place = draw(st.sampled_from([*places, *record["clients"].values()]))
            place[draw(st.sampled_from(sorted(place)))] = draw(
                values | texts | st.just(10**4_000) | st.just(1e308) | st.just(10**400)
            )
    return found


@cases(75)
@given(ascii_only=st.booleans(), data=st.data())
def test_a_malformed_metrics_file_gives_rounds_or_a_message(folder, ascii_only, data):
    path = folder / "metrics.jsonl"
    path.write_bytes(data.draw(damaged(lines_bytes(data.draw(rounds()), ascii_only))))
    found = outcome(lambda: read_rounds(path), path)
    if found is not None:
        numbers = [record.round for record in found]
        assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("key", ["peak_memory_bytes", "aggregation_mass"])
def test_a_number_beyond_every_float_is_a_message(folder, key):
    path = folder / "metrics.jsonl"
    line = json.dumps(whole_round(0) | {key: 0}).replace(f'"{key}": 0', f'"{key}": 1e999')
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=f"line 1: '{key}' is larger than any number"):
        read_rounds(path)


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ([], None),
        ([1], r"the categories of 'crows_pairs' must be an object, found \[1\]"),
        ({"age": 3}, "'age' must be an object, found 3"),
        ({"age": {"score": "x"}}, "'score' must be a number or null, found 'x'"),
        ({"age": {"score": 1.0, "ci95": [1]}}, "'ci95' must be two numbers or null"),
        ({"age": {"score": 10**400}}, "'score' is larger than any number"),
    ],
)
def test_damaged_categories_are_a_message(folder, categories, said):
    line = whole_round(0)
    line["global"]["crows_pairs"]["by_type"] = categories
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    if said is None:
        assert compare([folder])
        return
    with pytest.raises(UserError, match=f"line 1: {said}"):
        compare([folder])


def test_a_further_number_beyond_every_float_is_a_message(folder):
    line = whole_round(0)
    line["global"]["stereoset"]["mine"] = 10**400
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="'mine' is larger than any number"):
        compare([folder])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": 3}', "[" * 100_000, "\udcff"])
def test_a_damaged_run_file_is_a_message(folder, content):
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_bytes(lines_bytes([whole_round(0)], True))
    (run / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert outcome(lambda: compare([run]), run / "run.json") is None


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + b"\0" * 18, b"\x93NUMPY"])
def test_damaged_item_scores_are_a_message(folder, content):
    for name in ("a", "b"):
        run = folder / name
        (run / "scores").mkdir(parents=True, exist_ok=True)
        (run / "metrics.jsonl").write_bytes(lines_bytes([whole_round(0)], True))
        (run / "run.json").write_text('{"config": {}}')
        (run / "scores/round_000_crows_pairs.npz").write_bytes(content)
    assert outcome(lambda: compare([folder / "a", folder / "b"])) is None


@cases(50)
@given(data=st.data())
def test_malformed_metrics_are_compared_or_refused(folder: Path, data):
    for name in ("a", "b"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "metrics.jsonl").write_bytes(lines_bytes(data.draw(rounds()), True))
        (folder / name / "run.json").write_text(json.dumps({"config": {"seed": data.draw(values | texts)}}))
    table = outcome(lambda: compare([folder / "a", folder / "b"]))
    assert table is None or printable(table)
