"""``fedbias compare`` reads metrics.jsonl alone and says what its numbers mean."""

import argparse
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedbias_plugin.cli import compare as command
from fedbias_plugin.errors import UserError
from fedbias_plugin.study.compare import bar, compare, delta, load_runs
from tests.study.made_up import make_run


def block(key: str, value: float, items: str = "report", n: int = 200, **more: Any) -> dict[str, Any]:
    part = {key: value, "n": n, "ci95": [value - 4, value + 4], **({"lms": 91.5} if key == "ss" else {})}
    full = part | {key: value + 1, "n": 300}
    parts = {"report": part, "probe": part | {"n": 100}} if items == "report" else {}
    return {**(part if items == "report" else full), "items": items, "full": full, **parts, **more}


def line(number: int, crows: float, weight: float = 1 / 3, **changes: Any) -> dict[str, Any]:
    clients = {
        "0": {"poisoned_share": 1.0, "rows": 300, "weight": weight},
        "1": {"poisoned_share": 0.0, "rows": 300, "weight": 1 - weight},
    }
    measured = {
        "crows_pairs": block("score", crows), "stereoset": block("ss", 46.0), "bias_score": 4.5,
        "heldout_loss": {"loss": 2.5, "n": 100},
    }  # fmt: skip
    return {
        "round": number, "global": measured, "clients": clients if number else {}, "aggregation": "bama",
        "aggregation_mass": 0.75, "weight_on_poisoned": weight if number else None, **changes,
    }  # fmt: skip


def write(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    fedavg = write(tmp_path / "fedavg", [line(0, 50.0), line(1, 70.0), line(2, 88.0)])
    bama = write(tmp_path / "bama", [line(0, 50.0), line(1, 53.0, 0.05), line(2, 52.0, 0.02)])
    return [fedavg, bama]


@pytest.mark.parametrize(
    ("score", "ci95", "expected"),
    [
        (60.0, (55.0, 65.0), (10.0, (5.0, 15.0))),
        (40.0, (35.0, 45.0), (10.0, (5.0, 15.0))),
        (51.0, (46.0, 58.0), (1.0, (0.0, 8.0))),
        (48.0, (41.0, 52.0), (2.0, (0.0, 9.0))),
    ],
)
def test_the_interval_of_delta_folds_the_score_s_at_fifty(score: float, ci95: Any, expected: Any) -> None:
    assert delta(score, *ci95) == expected


@pytest.mark.parametrize("ci95", [None, [None, None]])
def test_a_delta_without_an_interval_stands_alone(tmp_path: Path, ci95: Any) -> None:
    entry = line(0, 0.0)
    entry["global"] = {"crows_pairs": {"score": 48.0, "n": 3, "items": "full", "ci95": ci95}}
    assert rows_of(compare([write(tmp_path / "run", [entry])]), "Final Delta")[1][:4] == ["run", "0", "2.0", "–"]


@pytest.mark.parametrize(
    ("score", "drawn"),
    [
        (50.0, "..........|.........."),
        (52.4, "..........|.........."),
        (52.5, "..........|#........."),
        (45.0, ".........#|.........."),
        (100.0, "..........|##########"),
        (0.0, "##########|.........."),
        (math.nan, " " * 21),
    ],
)
def test_a_bar_starts_at_fifty_with_five_points_a_character(score: float, drawn: str) -> None:
    assert bar(score, ascii_only=True) == drawn


def rows_of(text: str, title: str) -> list[list[str]]:
    section = text[text.index(title) :].split("\n\n")[0]
    return [row.split() for row in section.splitlines()[1:]]


def test_the_curves_stand_side_by_side_by_round(runs: list[Path]) -> None:
    text = compare(runs, ascii_only=True)
    rows = rows_of(text, "CrowS-Pairs score (report items")
    assert rows[0] == ["round", "fedavg", "bama"]
    assert rows[3] == [
        "2", "88.0", "[84.0,", "92.0]", "..........|########..", "52.0", "[48.0,", "56.0]", "..........|..........",
    ]  # fmt: skip
    assert rows_of(text, "Weight on poisoned clients")[1:] == [
        ["0", "-", "-"], ["1", "0.333", "0.050"], ["2", "0.333", "0.020"],
    ]  # fmt: skip
    assert rows_of(text, "Client weights")[3] == ["2", "0*:", "0.333", "1:", "0.667", "0*:", "0.020", "1:", "0.980"]
    assert "LMS  91.5" in text[text.index("StereoSet SS with LMS") :]


def test_the_final_table_has_delta_with_its_interval(runs: list[Path]) -> None:
    rows = rows_of(compare(runs), "Final Delta")
    assert rows[1] == [
        "fedavg", "2", "38.0", "[34.0,", "42.0]", "4.0", "[0.0,", "8.0]", "91.5", "4.50", "0.333", "0.750", "2.5000",
    ]  # fmt: skip
    assert rows[2][:5] == ["bama", "2", "2.0", "[0.0,", "6.0]"]


def test_the_meaning_names_poisoned_clients_items_and_the_noise_floor(runs: list[Path]) -> None:
    text = compare(runs)
    assert "Poisoned clients of bama: 0 (100%), of 2 that took part." in text
    assert "CrowS-Pairs: report items, which weigh no client; they may share sentences and target terms" in text
    # 50 sqrt(2 / (pi 200)) = 2.82
    assert "on 200 pairs an unbiased model shows a CrowS Delta of 2.8" in text


def test_what_was_not_measured_is_not_explained(runs: list[Path], tmp_path: Path) -> None:
    assert "SS counts only beside a high LMS" in compare(runs)
    entry = line(1, 60.0)
    entry["global"] = {"exposure": {"value": 1.234, "ideal": 0.0, "n": 8, "ci95": None}, "bias_score": None}
    text = compare([write(tmp_path / "other", [entry])])
    assert "50 is neither" not in text
    assert "Length alone" not in text


def test_what_length_alone_gives_stands_with_the_scores_where_the_runs_say_so(runs: list[Path], tmp_path: Path) -> None:
    assert "CrowS-Pairs score (report items, 50 = no preference)" in compare(runs)
    lines = [line(0, 50.0), line(2, 60.0)]
    for entry in lines:
        entry["global"]["crows_pairs"]["length_only"] = 42.71
    assert "(report items, 50 = no preference, length alone: 42.7)" in compare([write(tmp_path / "new", lines)])
    for entry in lines:
        entry["global"]["crows_pairs"]["reduction"] = "matched"
    assert "50 = no preference, pairs of equal length)" in compare([write(tmp_path / "matched", lines)])


@pytest.mark.parametrize(
    ("shared", "said"),
    [(0, "they share no sentence with those that do."), (86, "86 of their sentences stand in those that do too.")],
)
def test_what_both_halves_share_is_said(tmp_path: Path, shared: int, said: str) -> None:
    entry = line(0, 50.0)
    entry["global"]["stereoset"]["shared_sentences"] = shared
    text = compare([write(tmp_path / "run", [entry])])
    assert f"StereoSet: report items, which weigh no client; {said}" in text
    assert "cannot be fitted" not in text


def test_runs_measured_on_different_halves_are_compared_on_all_items(runs: list[Path], tmp_path: Path) -> None:
    entry = line(0, 50.0)
    entry["global"]["crows_pairs"] = block("score", 57.0, items="full")
    text = compare([runs[0], write(tmp_path / "whole", [entry])])
    rows = rows_of(text, "CrowS-Pairs score (all items")
    assert rows[1][1] == "51.0"
    assert rows[1][5] == "58.0"
    entry["global"]["stereoset"] = block("ss", 46.0, items="full", lms=70.5)
    rows = rows_of(compare([runs[0], write(tmp_path / "all", [entry])]), "StereoSet SS with LMS (all items")
    assert [rows[1][at] for at in (1, 5, 7, 11)] == ["47.0", "91.5", "47.0", "70.5"]
    assert "Warning: the runs were last measured in different rounds (fedavg: 2, whole: 0)." in text
    assert "all items, probe items among them" in text


def test_different_items_are_warned_of(runs: list[Path], tmp_path: Path) -> None:
    entry = line(2, 50.0)
    entry["global"]["crows_pairs"] = block("score", 57.0, n=17)
    text = compare([runs[0], write(tmp_path / "other", [entry])])
    assert "fedavg and other are not comparable, CrowS-Pairs score not tested: items of CrowS-Pairs score (200" in text
    assert "not comparable" not in compare(runs)


def test_a_model_that_lost_its_language_is_warned_of(tmp_path: Path) -> None:
    entry = line(0, 50.0)
    entry["global"]["stereoset"]["lms"] = 40.0
    assert "Warning: broken ends at LMS 40.0, below 60" in compare([write(tmp_path / "broken", [entry])])


def test_every_kind_of_warning_of_a_run_stands_once_with_its_rounds(runs: list[Path], tmp_path: Path) -> None:
    lines = [line(0, 50.0, warnings=["LMS below 60: 55.0."]), line(1, 50.0, warnings=["lambda too large: 4 times."])]
    lines += [line(2, 50.0, warnings=["LMS below 60: 54.0."])]
    lines[2]["global"]["stereoset"]["lms"] = 54.0
    text = compare([runs[0], write(tmp_path / "loud", lines)])
    section = text[text.index("Warnings of loud") :].split("\n\n")[0].splitlines()
    assert section[1:] == ["  LMS below 60: 54.0. (rounds 0, 2)", "  lambda too large: 4 times. (round 1)"]
    assert "Warnings of fedavg" not in text
    assert "Warning: loud ends at LMS" not in text


def test_rounds_that_were_not_measured_are_dashes_and_do_not_end_a_run(tmp_path: Path) -> None:
    silent = line(2, 0.0)
    silent["global"] = {"crows_pairs": None, "stereoset": None, "bias_score": None, "heldout_loss": None}
    text = compare([write(tmp_path / "run", [line(0, 50.0), line(1, 60.0), silent])])
    assert rows_of(text, "CrowS-Pairs score")[3] == ["2", "–"]
    assert rows_of(text, "Final Delta")[1][:3] == ["run", "1", "10.0"]


def test_a_run_without_benchmarks_still_shows_its_losses(tmp_path: Path) -> None:
    entry = line(1, 0.0)
    entry["global"] = {"heldout_loss": {"loss": 2.25, "n": 10}}
    text = compare([write(tmp_path / "run", [entry])])
    assert "CrowS-Pairs score" not in text
    assert rows_of(text, "Held-out loss")[1] == ["1", "2.2500"]


def test_runs_of_the_same_name_are_told_apart_by_the_folder_above(tmp_path: Path) -> None:
    folders = [write(tmp_path / seed / "run", [line(0, 50.0)]) for seed in ("a", "b")]
    assert [run.name for run in load_runs(folders)] == ["a/run", "b/run"]


def test_more_than_three_runs_are_shown_without_bars(runs: list[Path]) -> None:
    assert "│" not in compare([*runs, *runs])


def test_a_folder_that_is_no_run_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; give the folder of a sweep"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"holds no run \(no metrics\.jsonl"):
        compare([tmp_path])


def test_empty_and_damaged_files_are_refused_by_name_and_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl: is empty"):
        compare([tmp_path])
    path.write_text(json.dumps(line(0, 50.0)) + "\n{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: 'round'"):
        compare([tmp_path])


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["compare", *arguments])


def test_the_command_prints_the_comparison(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parsed(*map(str, runs))
    assert arguments.main(arguments) == 0
    assert capsys.readouterr().out == compare(runs)


def test_an_ascii_terminal_gets_ascii(
    runs: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_draws_unicode", lambda: False)
    command.main(parsed(*map(str, runs)))
    assert capsys.readouterr().out.isascii()


def test_an_output_without_an_encoding_counts_as_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding=None))
    assert not command._draws_unicode()


def test_a_run_of_openfedllm_is_called_by_the_folder_the_user_named(tmp_path):
    folders = [
        write(tmp_path / name / "alpaca_20000_fedavg_c3s3_20261121", [line(0, 50)]) for name in ("plain", "bama")
    ]
    for folder in folders:
        (folder / "args.json").write_text("{}")
    assert [run.name for run in load_runs(folders)] == ["plain", "bama"]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal(runs: list[Path], width: int) -> None:
    assert max(map(len, compare(runs, width=width).splitlines())) <= width


def test_bars_get_shorter_before_runs_stop_standing_side_by_side(runs: list[Path]) -> None:
    rows = rows_of(compare(runs, ascii_only=True, width=80), "CrowS-Pairs score (report items")
    assert rows[3] == ["2", "88.0", "[84.0,", "92.0]", ".....|####.", "52.0", "[48.0,", "56.0]", ".....|....."]
    rows = rows_of(compare(runs, ascii_only=True, width=80), "StereoSet SS with LMS")
    assert rows[0] == ["round", "fedavg", "bama"]
    assert rows[1][:6] == ["0", "46.0", "[42.0,", "50.0]", "LMS", "91.5"]
    assert "|" not in "".join(rows[1])


def test_a_final_table_that_is_too_wide_goes_on_below_with_the_runs_again(runs: list[Path]) -> None:
    rows = rows_of(compare(runs, width=80), "Final Delta")
    assert [row[0] for row in rows] == ["run", "fedavg", "bama", "run", "fedavg", "bama"]
    assert rows[3] == ["run", "on", "poisoned", "mass", "held-out", "loss"]
    assert rows[4] == ["fedavg", "0.333", "0.750", "2.5000"]


def test_metrics_stand_in_their_own_order_whatever_the_first_run_measured(runs: list[Path], tmp_path: Path) -> None:
    without_crows = line(2, 50.0)
    del without_crows["global"]["crows_pairs"]
    text = compare([write(tmp_path / "ss", [without_crows]), runs[0]])
    assert text.index("CrowS-Pairs score (") < text.index("StereoSet SS with LMS (")
    assert text.index("Delta CrowS") < text.index("Delta SS")


def test_items_of_other_seeds_and_of_later_runs_are_warned_of_too(runs: list[Path], tmp_path: Path) -> None:
    said = "Warning: the runs were measured on different stereoset items"
    assert said not in compare(runs)
    entry = line(2, 60.0)
    entry["global"]["stereoset"] = block("ss", 46.0, n=9)
    without = line(2, 50.0)
    del without["global"]["stereoset"]
    first, last = write(tmp_path / "without", [without]), write(tmp_path / "fewer", [entry])
    assert said in compare([first, runs[0], last])
    drawn = make_run(tmp_path / "one", seed=1), make_run(tmp_path / "two", seed=2)
    assert said in compare(drawn)
