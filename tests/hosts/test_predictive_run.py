"""``--aggregation predictive`` in whole runs: what is measured for it, recorded, and remembered by a resumed run."""

from __future__ import annotations

import pytest

from fedbias_plugin.cli.main import main
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
FLAGS = (*LORA, "--aggregation", "predictive", "--heldout_samples", "5", "--bama_crows_fraction", "0.5")


def test_predictions_stand_beside_what_came_out_and_half_of_the_held_out_rows_are_kept_for_the_report(run_builtin):
    first, *trained = run_builtin(*FLAGS, "--num_rounds", "2", "--attack", "adaptive", "--sample_clients", "2")
    whole = first.global_.metrics["heldout_loss"]
    assert first.extra == {}
    assert whole["n"] == 5
    assert 0 < whole["report_loss"] != whole["loss"]
    for record in trained:
        assert sum(row.weight for row in record.clients.values()) == pytest.approx(1)
        assert len(record.clients) == 2
        for name in ("crows_pairs", "stereoset"):
            assert abs(record.extra[f"predicted/{name}"]) <= 50
            assert record.extra[f"measured/{name}"] == pytest.approx(record.extra[f"predicted/{name}"], abs=5)
            assert record.extra[f"noise/{name}"] > 0
        for row in record.clients.values():
            assert row.metrics["heldout_loss"]["n"] == 3  # rows 0, 2 and 4
            assert row.metrics["heldout_loss"]["report_loss"] is None
            assert {"excess_loss", "alone/crows_pairs", "alone/stereoset"} <= row.extra.keys()


def test_a_resumed_run_and_one_that_measures_now_and_then_go_on_with_the_same_weights(run_builtin, tmp_path):
    whole = run_builtin(*FLAGS, "--num_rounds", "2", output="whole")
    with cut_off_in(2):
        run_builtin(*FLAGS, "--num_rounds", "2", output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    rare = run_builtin(*FLAGS, "--num_rounds", "2", "--bias_eval_every", "2", output="rare")
    assert "measured/crows_pairs" not in rare[1].extra
    for one, other in zip(whole[1:], rare[1:], strict=True):
        for client, row in one.clients.items():
            assert other.clients[client].weight == pytest.approx(row.weight, rel=1e-4)


def test_without_held_out_rows_or_probe_items_it_is_refused_at_the_start(run_builtin, capsys):
    run_builtin(*LORA, "--aggregation", "predictive", "--heldout_samples", "0", code=2)
    assert "is to compare clients by heldout_loss, which cannot be measured here: give --heldout_samples > 0" in (
        capsys.readouterr().err
    )
    run_builtin(*LORA, "--aggregation", "predictive", "--bias_benchmarks", "none", code=2)
    assert "no probe item is left" in capsys.readouterr().err


def test_a_run_takes_the_server_s_steps_and_records_what_they_did(run_builtin, capsys):
    flags = (*LORA, "--bama_crows_fraction", "0.5")
    _, record = run_builtin(*flags, "--pair_steps", "1", "--heldout_samples", "4", "--num_rounds", "1")
    assert {"pair_steps", "pair_loss_before", "pair_loss_after", "pair_bias_before"} <= record.extra.keys()
    assert record.extra["pair_loss_after"] <= record.extra["pair_loss_before"]
    run_builtin(*flags, "--pair_steps", "1", "--heldout_samples", "0", output="none", code=2)
    assert "--pair_steps is bounded by the loss on held-out rows: give --heldout_samples" in capsys.readouterr().err
