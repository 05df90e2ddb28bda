"""A run whose clients keep test rows: what it records, what rules read, and that it goes on the same."""

from __future__ import annotations

import json

import pytest

from fedbias_plugin.aggregation.plain import Plain
from fedbias_plugin.cli.main import main
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run

pytestmark = pytest.mark.skipif(detect_stack() != "current", reason="the built-in host needs the current libraries")
FLAGS = ("--use_peft", "--client_test_fraction", "0.25", "--bias_eval_every", "2", "--fed_alg", "scaffold")


@pytest.fixture
def seen(monkeypatch):
    """What the rule was told in every round."""
    told = []
    weigh = Plain.weigh

    def spying(self, reports):
        told.append({name: dict(own) for name, own in reports.own_scores.items()})
        return weigh(self, reports)

    monkeypatch.setattr(Plain, "weigh", spying)
    monkeypatch.setattr(Plain, "reads_own", frozenset({"client_loss"}))
    return told


def test_the_global_model_is_measured_on_every_client_and_a_resumed_run_goes_on_the_same(
    run_builtin, seen, tmp_path, capsys
):
    records = run_builtin(*FLAGS, output="whole")
    blocks = [record.global_.metrics["client_loss"] for record in records]
    assert "crows_pairs" not in records[1].global_.metrics  # while the clients are measured in every round
    assert "client_accuracy" not in records[0].to_json()["global"]
    values = [{client: own["value"] for client, own in enumerate(block["clients"].values())} for block in blocks]
    assert [told["client_loss"] for told in seen] == values[:2]
    assert values[0] != values[1]
    assert {own["n"] for own in blocks[0]["clients"].values()} == {2}
    assert {row.rows for row in records[1].clients.values()} == {6}
    _check_bytes(records)
    seen.clear()
    with cut_off_in(2):
        run_builtin(*FLAGS, output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert [told["client_loss"] for told in seen] == values[:2]
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "whole"), str(tmp_path / "cut")]) == 0
    assert "client loss: mean minus worst" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "whole"), "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report/report.md").read_text()
    for title in ("Fairness over clients", "Bytes of every arm", "Bias and fairness against bytes", "client by client"):
        assert title in page
    assert "left out" not in page  # as if clients lacked rows


def _check_bytes(records):
    """SCAFFOLD sends and receives a control variate as large as the adapter; before the first round c is zero."""
    size = records[1].clients[0].payload["sent"]["adapter"]
    assert size > 0
    for row in records[1].clients.values():
        assert row.payload == {"sent": {"adapter": size, "control_delta": size}, "received": {"adapter": size}}
    assert records[2].clients[1].payload["received"] == {"adapter": size, "control_variate": size}
    assert [record.payload.get("sent_total", 0) for record in records] == [0, 6 * size, 12 * size]


def test_a_rule_that_reads_what_is_not_measured_is_refused_before_anything_is_read(run_builtin, seen, capsys):
    run_builtin(output="none", code=2)
    assert "give --client_test_fraction 0.2" in capsys.readouterr().err
    Plain.reads_own = frozenset({"client_accuracy"})
    run_builtin("--client_test_fraction", "0.25", output="none", code=2)
    assert "the task sft of this run does not measure it" in capsys.readouterr().err


def test_the_run_says_in_its_records_which_rows_were_kept(run_builtin, tmp_path):
    run_builtin("--use_peft", "--client_test_fraction", "0.25", "--num_rounds", "1", "--bias_benchmarks", "none")
    client = json.loads((tmp_path / "run/manifest.json").read_text())["clients"][0]
    assert (client["rows"], client["test"]["rows"]) == (6, 2)
