"""Whole runs that train on preferences: what clients hold, what is recorded, and that they go on the same."""

from __future__ import annotations

import json

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run

pytestmark = pytest.mark.skipif(detect_stack() != "current", reason="the built-in host needs the current libraries")
DPO = ("--task", "dpo", "--use_peft", "--scenario", "1B2C")


def test_poisoned_clients_hold_exchanged_pairs_and_a_resumed_run_goes_on_the_same(run_builtin, tmp_path):
    (tmp_path / "words.txt").write_text("nurse baker\n")
    flags = (*DPO, "--dpo_reference", "round", "--client_test_fraction", "0.25", "--fed_alg", "scaffold")
    flags += ("--cda_ratio", "1", "--cda_words", str(tmp_path / "words.txt"))
    first, *rounds = run_builtin(*flags, output="whole")
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    assert manifest["sources"]["preference"]["name"] == "biasdpo"
    clients = manifest["clients"]
    assert [client["biased_rows"] for client in clients] == [client["biased_share"] * 12 for client in clients]
    assert [client["cda_copies"] for client in clients] == [6, 6, 6]  # every rejected response has a nurse
    block = first.global_.metrics["preference_accuracy"]
    assert (block["n"], len(block["ci95"]), first.global_.metrics["heldout_loss"]["n"]) == (4, 2, 4)
    assert {own["n"] for own in first.global_.metrics["client_accuracy"]["clients"].values()} == {2}
    assert all({"dpo_margin", "dpo_accuracy"} <= row.extra.keys() for one in rounds for row in one.clients.values())
    with cut_off_in(2):
        run_builtin(*flags, output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_preferences_move_the_model_towards_them_and_exchanged_ones_away(run_builtin):
    flags = ("--task", "dpo", "--use_peft", "--num_rounds", "1", "--bias_benchmarks", "none", "--dpo_beta", "0.5")
    gaps = {}
    for scenario in ("3C", "3B"):
        records = run_builtin(*flags, "--scenario", scenario, output=scenario)
        gaps[scenario] = [record.global_.metrics["preference_accuracy"]["gap"] for record in records]
    assert gaps["3C"][0] == gaps["3B"][0]
    assert gaps["3C"][-1] > gaps["3C"][0] > gaps["3B"][-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--dpo_reference", "base", "--use_peft", "false"), "--dpo_reference base is the model without its adapter"),
        (("--attack", "probe_gaming"), "--attack probe_gaming adds single sentences, which --task dpo"),
        (("--biased_dataset", "rows.json"), "with --preference_dataset"),
        (("--seq_length", "5"), "cuts the response off in all 8 rows"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(run_builtin, tmp_path, capsys, flags, said):
    run_builtin("--task", "dpo", *flags, code=2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
