"""Names that users give: of data sets, folders and models. Tricks in them lead nowhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.cli.main import main
from fedbias_plugin.data.catalog import known_datasets, locate
from fedbias_plugin.data.hub import cached_files, is_hub_name
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.errors import UserError, printable
from fedbias_plugin.files import write_json_atomic
from fedbias_plugin.metrics.base import Source
from fedbias_plugin.preflight import check_model
from fedbias_plugin.registry import load
from tests.hostile_data.generators import cases, is_text, outcome, texts

TRICKS = (
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/null",
    "~nobody-of-this-name/rows.csv",
    "~",
    "a/b",
    "a/..",
    "../b",
    "-rf",
    "--help",
    "$(id).csv",
    "; rm -rf x.json",
    "x" * 300 + ".csv",
    "x" * 5_000 + ".json",
    "/".join(["d"] * 3_000) + ".csv",
    "a\0.csv",
    "a\nb.csv",
    "a\udcff.csv",
    "\u202evsc.csv",
    "con.csv",
    ".csv",
    "..",
    "",
    "file:///etc/passwd",
    "http://localhost/x.csv",
    "mini",
    "auto",
)
names = st.sampled_from(TRICKS) | st.tuples(st.sampled_from(TRICKS), texts).map("".join) | texts


@cases(62)
@given(names)
def test_any_name_of_a_data_set_is_rows_or_a_message(folder, name):
    for kind in ("clean", "biased"):
        source = outcome(lambda kind=kind: load_rows(name, kind))
        if source is not None:
            assert is_text(source.name)
            write_json_atomic(folder / "name.out", source.name)


@cases(50)
@given(names)
def test_any_data_folder_is_looked_into_or_a_message(name):
    source = Source(lambda kind: locate(kind, name, kind=kind).paths[0])
    for kind in ("crows_pairs", "stereoset"):
        outcome(lambda kind=kind: load("metric", kind)().prepare(source))
    outcome(lambda: load_rows("auto", "clean", name))


@cases(50)
@given(names)
def test_any_name_of_a_model_is_a_folder_a_name_of_the_hub_or_a_message(name):
    found = outcome(lambda: check_model(name, asks_hub=False))
    if found is not None and not os.path.isdir(found):
        assert not found.startswith((".", "/", "~"))


@pytest.mark.parametrize("name", ["x" * 300 + ".json", "no/such/folder.json", "rows.csv/below.json", ""])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(folder, name, capsys):
    (folder / "rows.csv").write_text("a")
    assert main(["evaluate", "--model_name_or_path", "no/such/model", "--output", f"{folder}/{name}"]) == 2
    assert capsys.readouterr().err.startswith("fedbias: error: --output")


@pytest.mark.parametrize("name", ["a\nfinished: b.csv", "bytes\udcff.csv", "bell\x07.csv"])
def test_a_file_whose_name_no_file_or_log_can_hold_is_refused(folder, name):
    path = folder / name
    path.write_text("instruction,output\na,b\n")
    with pytest.raises(UserError, match="give it another name"):
        load_rows(str(path), "clean")


def test_an_error_that_quotes_a_file_name_moves_no_cursor_and_starts_no_line(folder, capfd):
    flags = ["--data_dir", f"{folder}/\x1b[2K\r\u202ex\nfinished: run holds metrics.jsonl"]
    assert main(["data", "list", *flags]) == 2
    shown = capfd.readouterr().err
    assert shown.startswith("fedbias: error: --data_dir")
    assert printable(shown) == shown
    assert not any(line.startswith("finished") for line in shown.splitlines())


def test_a_folder_with_markup_in_its_name_is_listed_as_it_is(folder, capsys, monkeypatch):
    data = folder / "[bold]x[" / "biasdpo"
    data.mkdir(parents=True)
    (data / "BiasDPO.jsonl").write_text(json.dumps({"prompt": "a", "rejected": "b"}))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["data", "list", "--data_dir", str(data.parent)]) == 0
    assert "[bold]x[" in capsys.readouterr().out


def test_every_file_of_a_known_data_set_lies_below_the_folder_it_is_looked_for_in():
    for known in known_datasets().values():
        for form in known.forms:
            for file in form.files:
                assert not Path(file.path).is_absolute()
                assert ".." not in Path(file.path).parts


@pytest.mark.parametrize("name", ["a/..", "../a", "a/b/c", "a/b\n", "/a", "a/", "a b/c", "a/-b", "é/b"])
def test_a_path_is_no_name_of_the_hub(name):
    assert not is_hub_name(name)


def test_the_hubs_cache_is_not_left_by_a_revision_that_is_a_path(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    repository = folder / "datasets--owner--rows"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (folder / "secret.json").write_text("[]")
    (repository / "refs/main").write_text("../../..")
    assert cached_files("owner/rows", (".json",)) == ()
