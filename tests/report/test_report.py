"""``fedbias report`` writes one folder, whole, small and the same every time, and nothing over anything else."""

import json
import re
import sys
from pathlib import Path

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.report.report import write_report
from tests.report.made_up_study import paper_configs, settings, write_run, write_study

HOSTILE = "<script>alert(1)</script>"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_study(
        tmp_path / "runs", [settings(aggregation=rule, seed=seed) for rule in ("plain", "bama") for seed in (1, 2)]
    )


def test_a_report_is_a_page_markdown_with_pictures_and_tables(runs: Path) -> None:
    page = write_report([runs])
    assert page == (runs / "report" / "report.html").resolve()
    names = set(contents(runs / "report"))
    assert {"report.html", "report.md", "figures/crows_by_round.png", "tables/table3.csv", "tables/table3.tex"} <= names
    assert sorted(path.name for path in runs.iterdir()) == ["report", "run_000", "run_001", "run_002", "run_003"]


def test_markdown_shows_every_picture_with_alternative_text(runs: Path) -> None:
    folder = write_report([runs]).parent
    text = (folder / "report.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^!\[(.+)\]\((figures/[a-z_]+\.png)\)$", text, flags=re.M))
    assert sorted(shown.values()) == sorted(name for name in contents(folder) if name.endswith(".png"))
    assert all(len(alt) > 40 for alt in shown)
    for title in (
        "## Key findings",
        "## Figures",
        "## Tables",
        "## Warnings",
        "## How to read the numbers",
        "## What was run",
    ):
        assert title in text


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    first = write_report([runs], tmp_path / "one").parent
    assert contents(first) == contents(write_report([runs], tmp_path / "two").parent)


def test_an_older_report_is_replaced_as_a_whole(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_report([runs], output)
    (output / "tables" / "old.csv").write_text("from an older study")
    assert "figures/client_weights.png" in contents(output)
    write_report([runs / "run_000"], output)  # without BAMA
    assert not {"tables/old.csv", "figures/client_weights.png"} & set(contents(output))


@pytest.mark.parametrize("name", ["notes.txt", "tables/notes.txt", "figures/deep/a.png"])
def test_a_folder_that_holds_anything_else_is_left_as_it_is(runs: Path, tmp_path: Path, name: str) -> None:
    stranger = tmp_path / "out" / name
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine")
    with pytest.raises(UserError, match="which is not of a report; give an empty or a new folder"):
        write_report([runs], tmp_path / "out")
    assert contents(tmp_path / "out") == {name: b"mine"}


def test_a_run_s_own_folder_is_no_place_for_a_report(runs: Path) -> None:
    with pytest.raises(UserError, match=r"holds metrics\.jsonl, which is not of a report"):
        write_report([runs], runs / "run_000")


def test_an_output_that_is_a_file_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; --output names a folder"):
        write_report([runs], tmp_path / "file")


def test_nothing_appears_where_no_run_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_report([tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_metrics_alone_are_enough(runs: Path) -> None:
    for path in runs.glob("*/run.json"):
        path.unlink()
    folder = write_report([runs]).parent
    assert {"figures/crows_by_round.png", "figures/bias_against_loss.png", "tables/quality.csv"} <= set(
        contents(folder)
    )


def test_a_last_line_that_was_cut_off_is_said_on_the_page(runs: Path) -> None:
    with open(runs / "run_001" / "metrics.jsonl", "a") as stream:
        stream.write('{"round": 6, "glo')
    page = write_report([runs]).read_text(encoding="utf-8")
    assert "run_001: the last line of metrics.jsonl was cut off" in page


def test_names_and_warnings_that_are_markup_are_shown_as_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "<b>a", settings(model_name_or_path=HOSTILE), warnings=[HOSTILE])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in lines:
        record["global"]["crows_pairs"]["by_type"][HOSTILE] = {"score": 50.0, "n": 1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    page = write_report([tmp_path / "runs"])
    assert "<script" not in page.read_text(encoding="utf-8")
    assert "<script" not in page.with_name("report.md").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page.read_text(encoding="utf-8")


def test_a_hundred_runs_make_a_page_below_three_megabytes_and_pictures_below_one(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", [*paper_configs(), *paper_configs(seeds=(4,))])
    assert len(list(runs.iterdir())) >= 100
    sizes = {name: len(data) for name, data in contents(write_report([runs]).parent).items()}
    assert sizes["report.html"] < 3_000_000
    assert sum(size for name, size in sizes.items() if name.endswith(".png")) < 1_000_000


@pytest.mark.parametrize("library", ["matplotlib", "jinja2", "scipy"])
def test_a_missing_library_is_named_with_the_line_that_mends_it(
    runs: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"the report needs {library}: pip install {library}"):
        write_report([runs])
    assert not (runs / "report").exists()
