"""Runs with ``--dp_unit client`` and with ``--bama_min_ability``: resumed, attacked, destroyed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedbias_plugin.aggregation.bama import Bama
from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.cli.main import main
from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.training.accounting import gaussian_epsilon
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run

CLIENT = ("--use_peft", "--dp_unit", "client", "--dp_epsilon", "10", "--num_rounds", "3")
BAMA = ("--aggregation", "bama", "--bama_bias_range", "10")


def test_a_private_federation_that_was_cut_off_ends_in_the_same_bytes_and_epsilon(run_builtin, tmp_path, capsys):
    flags = (*CLIENT, *BAMA, "--bama_min_ability", "0.3", "--fed_alg", "fedadam", "--sample_clients", "2")
    records = run_builtin(*flags, output="whole")
    said = capsys.readouterr().err
    # lambda B = 2, two a round: w_max = 1 / (1 + e^-2) = .8808
    assert "3 rounds planned, 2 clients a round, updates clipped to 1, one moves the mean by at most 1.762" in said
    for record in records[1:]:
        extras = [client.extra for client in record.clients.values()]
        assert len(extras) == 2
        for extra in extras:
            assert extra["dp_epsilon"] == gaussian_epsilon(extra["dp_sigma"], record.round, 1e-5)
            assert extra["ability"] >= 0
    assert 9.99 < records[-1].clients[min(records[-1].clients)].extra["dp_epsilon"] <= 10
    assert all(any(text.startswith("client privacy: ") for text in record.warnings) for record in records)
    with cut_off_in(client=min(records[-1].clients)):
        run_builtin(*flags, output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_boosted_attack_is_clipped_and_a_refused_one_keeps_its_place(run_builtin):
    attack = ("--attack", "model_replacement", "--attackers", "1", "--attack_strength", "1000")
    plain = ("--use_peft", "--bias_benchmarks", "none", "--num_rounds", "1", "--dp_unit", "client")
    quiet = (*plain, "--dp_noise_multiplier", "0", "--dp_update_norm", "0.01")
    row = run_builtin(*quiet, *attack, output="clipped")[1].clients[1]
    assert row.update_norm > 1
    assert row.extra["dp_update_kept"] == pytest.approx(0.01 / row.update_norm)
    refused = run_builtin(*quiet, *attack, "--max_update_norm", "1", "--on_bad_update", "drop", output="refused")[1]
    assert refused.clients[1].refused
    assert refused.aggregation_mass == pytest.approx(2 / 3)
    nobody = ("--max_update_norm", "1e-9", "--on_bad_update", "drop", "--dp_noise_multiplier", "1")
    (run,) = run_builtin(*plain, *nobody, output="noise")[1:]
    assert all(client.refused for client in run.clients.values())
    assert run.aggregation_mass == 0
    assert any(text.startswith("update refused: ") and "stays as it was" not in text for text in run.warnings)


def test_the_mean_is_averaged_alone_so_that_its_rounding_tells_nothing(run_builtin, monkeypatch):
    seen, average = [], ServerOptimizer.aggregate

    def watched(self, number, theta, states, rows, *rest, **more):
        (state,) = (dict(one) for one in states.values())
        found = average(self, number, theta, states, rows, *rest, **more)
        seen.append((list(rows.values()), all(torch.equal(found[name], state[name]) for name in state)))
        return found

    monkeypatch.setattr(ServerOptimizer, "aggregate", watched)
    run_builtin("--use_peft", "--bias_benchmarks", "none", "--num_rounds", "2", *CLIENT[1:5])
    assert seen == [([1], True)] * 2


def test_what_cannot_be_private_is_refused_before_the_model_is_read(run_builtin, tmp_path, capsys):
    run_builtin(*CLIENT, "--aggregation", "bama", code=2)
    assert "give --bama_bias_range B" in capsys.readouterr().err
    run_builtin(*CLIENT, "--fed_alg", "scaffold", code=2)
    assert "control_variate" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_stereoset_ability_is_of_the_held_out_loss_and_a_round_of_nobody_leaves_the_model(
    run_builtin, monkeypatch
):
    flags = ("--use_peft", "--aggregation", "bama", "--num_rounds", "1", "--bias_benchmarks", "crows_pairs")
    record = run_builtin(*flags, "--bama_min_ability", "0.5", output="able")[1]
    for client in record.clients.values():
        assert client.extra["ability"] == pytest.approx(1.0, abs=0.4)
        assert client.metrics["heldout_loss"]["n"] == 4
    monkeypatch.setattr(
        "fedbias_plugin.aggregation.bama.abilities", lambda given: dict.fromkeys(given.sample_counts, 0.5)
    )
    before, after = run_builtin(*flags, "--bama_min_ability", "0.9", output="nobody")
    assert all("gated" in client.extra and client.weight is None for client in after.clients.values())
    assert after.global_ == before.global_
    assert after.aggregation_mass == 0
    assert any("nobody is left, and nothing is learned" in text for text in after.warnings)


def test_bama_gives_a_destroyed_model_all_the_weight_and_the_gate_takes_it_away(tmp_path: Path, monkeypatch):
    """The bundled model and small world: two clients learn a bias, and the noise of one destroys its model."""
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)
    flags = "--data_dir mini --scenario custom --biased_shares 1,1 --num_clients 2 --num_rounds 1 --aggregation bama"
    noise = "--attack gaussian_noise --attackers 1 --attack_strength 20 --output_dir"
    assert main(["run", *flags.split(), *noise.split(), str(tmp_path / "run")]) == 0
    first, last = read_rounds(tmp_path / "run/metrics.jsonl")
    lms = {client: row.metrics["stereoset"]["lms"] for client, row in last.clients.items()}
    assert lms[0] > 90
    assert lms[1] < 65
    assert last.clients[1].weight > 0.9
    assert any(text.startswith("ability lost: client 1 (") for text in last.warnings)
    reports = ClientReports(
        "fedavg",
        {client: row.rows for client, row in last.clients.items()},
        {client: row.bias_score for client, row in last.clients.items()},
        {},
        {0: {}, 1: {}},
        metrics={client: row.metrics for client, row in last.clients.items()},
        of_global={"stereoset": first.global_.metrics["stereoset"]["probe"]},
    )
    assert Bama(bama_min_ability=0.9).weigh(reports).weights == {0: 1.0, 1: 0.0}
