"""A whole run that classifies: from one flag to a report that says who holds what."""

import json

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.study.bars import held_labels
from fedbias_plugin.tracking.jsonl import read_rounds

SMALL = ("--data_dir", "mini", "--client_samples", "200", "--heldout_samples", "100", "--max_steps", "8")
SKEWED = (
    "--partitioner",
    "dirichlet",
    "--dirichlet_min",
    "40",
    "--dirichlet_alpha",
    "0.3",
    "--client_test_fraction",
    "0.2",
)


def test_a_small_net_learns_skewed_rows_and_is_shown_beside_its_baselines(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)
    flags = ("--task", "classify", "--classifier", "textcnn", "--num_rounds", "2", *SMALL, *SKEWED, "--local_baseline")
    assert main(["run", *flags, "--output_dir", str(tmp_path / "a")]) == 0
    first, _, last = read_rounds(tmp_path / "a" / "metrics.jsonl")
    found = last.global_.metrics
    assert found["heldout_accuracy"]["n"] == 100
    assert found["heldout_accuracy"]["loss"] < first.global_.metrics["heldout_accuracy"]["loss"]
    assert "local_only" not in first.global_.metrics
    alone, together = found["local_only"], found["client_accuracy"]
    assert {c: one["n"] for c, one in alone["clients"].items()} == {
        c: one["n"] for c, one in together["clients"].items()
    }
    assert alone["value"] != together["value"]
    assert 0 < alone["majority"] < 1
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    held = held_labels(manifest)
    assert {c: sum(counts.values()) for c, counts in held.items()} == {
        str(client["client"]): client["rows"] + client["test"]["rows"] for client in manifest["clients"]
    }
    assert manifest["dirichlet_draws"] >= 1
    assert (tmp_path / "a/model/model.safetensors").is_file()
    assert main(["report", str(tmp_path / "a"), "--output", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page/figures/who_holds_what.png").is_file()
    assert "local only" in (tmp_path / "page/report.md").read_text()


@pytest.mark.parametrize("weights", [(), ("--random_weights",)])
def test_a_decoder_with_an_adapter_classifies_with_no_other_flag_than_the_task(tmp_path, monkeypatch, weights):
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)
    flags = ("--task", "classify", "--num_rounds", "1", *SMALL, "--max_steps", "2", *weights)
    assert main(["run", *flags, "--output_dir", str(tmp_path / "a")]) == 0
    found = read_rounds(tmp_path / "a" / "metrics.jsonl")[-1].global_.metrics
    assert found["heldout_accuracy"]["labels"] == 8
    assert found["heldout_loss"] is None if "heldout_loss" in found else True
    card = (tmp_path / "a/adapter/README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert ("from random weights" in card) == bool(weights)
