"""Clients whose updates cannot be used, in whole runs of the built-in host."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedbias_plugin.cli.main import main
from fedbias_plugin.federation.client import Client
from fedbias_plugin.state import State
from fedbias_plugin.training.base import ClientRound
from fedbias_plugin.updates.base import Update
from tests.hosts.run_folders import comparable

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
DROP = ("--on_bad_update", "drop")


def first(state: State) -> str:
    return next(iter(state))


def with_first(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda state: {**state, first(state): change(state[first(state)])}


FAULTS: dict[str, tuple[Callable[[State], State], str]] = {
    "nan": (with_first(lambda t: t.index_fill(0, torch.tensor([0]), math.nan)), "NaN"),
    "infinite": (with_first(lambda t: t.index_fill(0, torch.tensor([0]), math.inf)), "infinite"),
    "shape": (with_first(lambda t: t[:-1]), "shape"),
    "missing": (lambda state: {name: t for name, t in state.items() if name != first(state)}, "missing"),
    "extra": (lambda state: {**state, "trojan": torch.zeros(1)}, "trojan"),
    "dtype": (with_first(lambda t: t.double()), "float64"),
}


@pytest.fixture
def break_client(monkeypatch):
    """``break_client(change, clients={1})``: those clients send ``change(state)`` in every round."""

    def install(change: Callable[[State], State], clients: set[int], rounds: set[int] | None = None) -> None:
        fit = Client.fit

        def train(self: Client, job: ClientRound, features: Any) -> Update:
            update = fit(self, job, features)
            wanted = job.client in clients and (rounds is None or job.round_idx + 1 in rounds)
            return dataclasses.replace(update, state=change(update.state)) if wanted else update

        monkeypatch.setattr(Client, "fit", train)

    return install


@pytest.mark.parametrize("kind", FAULTS)
def test_by_default_the_run_stops_and_names_client_round_and_fault(run_builtin, break_client, capsys, kind):
    change, phrase = FAULTS[kind]
    break_client(change, {1}, {2})
    run_builtin(*LORA, "--aggregation", "bama", code=2)
    error = capsys.readouterr().err
    assert "Round 2 has updates that cannot be used (client 1: " in error
    assert phrase in error
    assert "--on_bad_update drop" in error


@pytest.mark.parametrize("fed_alg", ["fedavg", "scaffold", "fedadam"])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_dropped_clients_weight_goes_to_the_others(run_builtin, break_client, tmp_path, kind, fed_alg):
    change, phrase = FAULTS[kind]
    break_client(change, {1})
    records = run_builtin(*LORA, *DROP, "--aggregation", "bama", "--fed_alg", fed_alg)
    for record in records[1:]:
        refused = record.clients[1]
        assert phrase in refused.refused
        assert (refused.weight, refused.bias_score) == (None, None)
        assert record.clients[0].weight + record.clients[2].weight == pytest.approx(1)
        assert record.clients[0].refused is None
        assert any(warning.startswith("update refused: client 1 (") for warning in record.warnings)
        assert record.aggregation_mass == pytest.approx(1)
    adapter = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in adapter.values())
    assert any(
        "update refused" in warning for warning in json.loads((tmp_path / "run/summary.json").read_text())["warnings"]
    )


@pytest.mark.parametrize("fed_alg", ["fedavg", "scaffold", "fedavgm"])
@pytest.mark.parametrize("benchmarks", ["crows_pairs,stereoset", "none"])
def test_with_nobody_left_the_global_model_stays_and_the_round_is_recorded(
    run_builtin, break_client, fed_alg, benchmarks
):
    break_client(FAULTS["nan"][0], {0, 1, 2}, {1})
    records = run_builtin(*LORA, *DROP, "--fed_alg", fed_alg, "--bias_benchmarks", benchmarks)
    assert [record.round for record in records] == [0, 1, 2]
    assert records[1].global_ == records[0].global_
    assert records[1].aggregation_mass is None
    assert any("nobody is left" in warning for warning in records[1].warnings)
    assert records[2].clients[0].refused is None
    assert records[2].global_ != records[1].global_


def test_fedavg_of_the_clients_that_are_left_is_the_mean_of_their_states(
    run_builtin, break_client, tmp_path, monkeypatch
):
    sent: dict[int, State] = {}
    break_client(FAULTS["nan"][0], {1})
    inner = Client.fit

    def remember(self: Client, job: ClientRound, features: Any) -> Update:
        update = inner(self, job, features)
        sent[job.client] = update.state
        return update

    monkeypatch.setattr(Client, "fit", remember)
    run_builtin(*LORA, *DROP, "--num_rounds", "1")
    adapter = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    for name, tensor in adapter.items():
        assert torch.allclose(tensor, (sent[0][name] + sent[2][name]) / 2, atol=1e-7)


def test_a_norm_beyond_the_limit_is_refused_and_norms_are_always_recorded(run_builtin):
    norms = [client.update_norm for client in run_builtin(*LORA, "--num_rounds", "1", output="a")[1].clients.values()]
    limit = sorted(norms)[1]
    records = run_builtin(*LORA, *DROP, "--num_rounds", "1", "--max_update_norm", str(limit), output="b")
    refused = [client.refused for client in records[1].clients.values()]
    assert [text is not None for text in refused] == [norm > limit for norm in norms]
    assert [client.update_norm for client in records[1].clients.values()] == norms


def test_a_loss_that_is_no_number_stops_at_once_or_drops_the_client(run_builtin, monkeypatch, capsys):
    trained = []

    fit = Client.fit

    def diverge(self: Client, job: ClientRound, features: Any) -> Update:
        trained.append(job.client)
        update = fit(self, job, features)
        return dataclasses.replace(update, loss=math.nan) if job.client == 1 else update

    monkeypatch.setattr(Client, "fit", diverge)
    run_builtin(*LORA, output="stop", code=2)
    assert "Client 1's training loss in round 1 is nan" in capsys.readouterr().err
    assert trained == [0, 1]
    records = run_builtin(*LORA, *DROP, output="drop")
    assert records[1].clients[1].refused == "training loss nan"
    assert records[1].clients[1].train_loss is None


def test_a_finite_update_whose_model_overflows_is_refused_too(run_builtin, break_client):
    break_client(lambda state: {name: tensor * 1e20 for name, tensor in state.items()}, {2})
    records = run_builtin(*LORA, *DROP, "--num_rounds", "1")
    assert "scores are not finite" in records[1].clients[2].refused


RULES = ("median", "trimmed_mean", "krum", "multi_krum", "norm_clip", "plain")


@pytest.mark.parametrize(
    ("attack", "aggregation"),
    [*((attack, "bama") for attack in ("sign_flip", "model_replacement", "gaussian_noise", "probe_gaming"))]
    + [("model_replacement", rule) for rule in RULES],  # which makes the largest updates
)
def test_every_attack_and_every_rule_run_and_are_shown(run_builtin, tmp_path, capsys, attack, aggregation):
    flags = (*LORA, "--attack", attack, "--aggregation", aggregation, "--num_rounds", "1")
    (_, record) = run_builtin(*flags, "--byzantine_clients", "1")
    attackers = [client for client, found in record.clients.items() if found.attack == attack]
    assert attackers == [client for client, found in record.clients.items() if found.poisoned_share]
    assert json.loads((tmp_path / "run/run.json").read_text())["attackers"] == attackers
    assert len(attackers) == 1
    said = capsys.readouterr()
    assert f"attackers ({attack}): {attackers[0]}" in said.err
    assert f"client {attackers[0]}: attack {attack} | " in said.out
    assert f"simulated attackers: {attack}" in (tmp_path / "run/adapter/README.md").read_text()
    assert main(["compare", str(tmp_path / "run")]) == 0
    assert f"Attackers of run: {attackers[0]} ({attack})." in capsys.readouterr().out
    assert any(warning.startswith("probe gaming") for warning in record.warnings) == (attack == "probe_gaming")
    assert comparable(tmp_path / "run")[1]["aggregation"] == aggregation
