"""What stands at the top of a report before any number."""

import json

from fedbias_plugin.report.caveats import caveats
from fedbias_plugin.report.study import load_study
from tests.report.made_runs import make_run


def said(*folders):
    return caveats(load_study(folders), folders)


def plan(folder, **experiments):
    stored = {"experiments": {name: {"title": name, "runs": runs} for name, runs in experiments.items()}}
    (folder / "sweep.json").write_text(json.dumps(stored))


def test_runs_that_a_sweep_plans_and_the_report_lacks_are_counted_by_experiment(tmp_path):
    for name in ("a", "b"):
        (make_run(tmp_path / "runs" / name, seed=ord(name)) / "scores").mkdir()
    plan(tmp_path, table1=["a", "b", "c"], table3=["b"])
    (line,) = said(tmp_path)
    assert "2 of the 3 runs" in line
    assert "(table1: 2 of 3, table3: 1 of 1)" in line
    plan(tmp_path, table1=["a", "b"])
    assert said(tmp_path) == []


def test_a_damaged_plan_counts_nothing(tmp_path):
    (make_run(tmp_path / "runs/a") / "scores").mkdir()
    (tmp_path / "sweep.json").write_text('{"experiments": [1]}')
    assert said(tmp_path) == []


def test_bundled_data_are_said(tmp_path):
    for name, origin in (("a", "bundled"), ("b", "file")):
        run = make_run(tmp_path / name, seed=ord(name))
        (run / "scores").mkdir()
        details = json.loads((run / "run.json").read_text())
        details["data"] = {**details.get("data", {}), "clean": {"origin": origin}}
        (run / "run.json").write_text(json.dumps(details))
    (line,) = said(tmp_path)
    assert line.startswith("1 of 2 runs used the bundled mini data, an invented world")


def test_runs_without_item_scores_are_counted(tmp_path):
    make_run(tmp_path / "a")
    assert said(tmp_path) == ["No paired tests on items for 1 of 1 runs: their folder scores/ is missing."]


def test_sentences_that_probe_and_report_items_share_are_counted(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "scores").mkdir()
    assert said(tmp_path) == []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["global"]["stereoset"]["shared_sentences"] = 86
        line["global"]["crows_pairs"]["shared_sentences"] = 0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = said(tmp_path)
    assert found.startswith("StereoSet: up to 86 sentences of the report items stand in probe items too")
