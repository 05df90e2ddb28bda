"""A stranger's term, trainable and task: each a class and a name, in whole runs of the built-in host."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedbias_plugin import registry
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.cli.main import main
from fedbias_plugin.data.rows import Row
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.options import option
from fedbias_plugin.tasks.base import Task
from fedbias_plugin.training.base import ClientRound, LocalTraining, Term, Trainable
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run, comparable

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
WHOLE = ("--use_peft", "false", "--learning_rate", "1e-3")


@dataclass
class AlwaysAnchor(Term):
    """0.01 times the sum of the squared weights joins the loss; counts the rounds of all clients.

    Switched on without a flag, as the process of these tests has read its flags already.
    """

    rounds: int = 0
    keeps = ("last",)

    def begin(self, job: ClientRound, parameters: dict[str, torch.nn.Parameter]) -> None:
        self.live, self.steps = list(parameters.values()), 0

    def add_to_loss(self, loss: torch.Tensor) -> torch.Tensor:
        return loss + 0.01 * sum((parameter**2).sum() for parameter in self.live)

    def after_step(self, learning_rate: float) -> None:
        self.steps += 1

    def finish(self, job: ClientRound, state: dict[str, torch.Tensor], steps: int) -> None:
        self.rounds += 1
        had = job.kept.get("last", {})
        job.keeps["last"] = {name: tensor.clone() for name, tensor in state.items()}
        job.extra |= {"steps": self.steps, "rounds": self.rounds, "had_last": float(bool(had))}

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": self.rounds}

    def load_state_dict(self, state: Any) -> None:
        self.rounds = state["rounds"]


@dataclass
class Anchor(AlwaysAnchor):
    """Switched on by a flag."""

    anchor: float = option(0.0, "how strongly weights are drawn to 0", at_least=0)

    @property
    def is_on(self) -> bool:
        return self.anchor > 0


@dataclass
class Sign(Term):
    """Trains by itself: every weight moves against the sign of its gradient."""

    trains = True

    def plan(self, model: Any, settings: Any, units: Mapping[int, Sequence[int]]) -> None:
        self.rows = {client: len(own) for client, own in units.items()}

    def train(self, job: ClientRound, local: LocalTraining) -> tuple[int, float]:
        parameters = list(local.parameters.values())
        for _ in range(local.settings.max_steps):
            loss = local.add_to_loss(local.model(**local.collate(list(local.features))).loss)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.data -= job.learning_rate * gradient.sign()
            local.after_step(job.learning_rate)
        job.extra["planned_rows"] = self.rows[job.client]
        return local.settings.max_steps, float(loss.detach())


@dataclass
class Norms(Trainable):
    """The layers' norms alone, under names of their own."""

    def prepare(self, model: Any, seed: int) -> Any:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    def parameters(self, model: Any) -> dict[str, torch.nn.Parameter]:
        return {f"norms/{name}": parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass
class Continue(Task):
    """The model continues the instruction itself; responses are not looked at."""

    def encode(self, rows: Sequence[Row], tokenizer: Any, seq_length: int) -> list[dict[str, Any]]:
        encoded = [tokenizer(row.instruction, truncation=True, max_length=seq_length)["input_ids"] for row in rows]
        return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in encoded]


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    """``strangers(term="anchor")`` registers what is named."""
    known = {"sign": Sign, "anchor": Anchor, "always_anchor": AlwaysAnchor, "norms": Norms, "continue": Continue}

    def register(**named: str) -> None:
        for kind, name in named.items():
            monkeypatch.setitem(registry.EXTENSIONS[kind], name, f"{__name__}:{known[name].__name__}")

    return register


def test_a_term_is_used_where_its_flag_asks_for_it_and_belongs_to_no_algorithm(strangers):
    strangers(term="anchor")
    flags, ours = SimpleNamespace(anchor=0.5, prox_mu=0.1), BiasArguments()
    assert [term.name for term in terms_of("fedavg", flags, ours)] == ["anchor"]
    assert [term.name for term in terms_of("fedprox", flags, ours)] == ["prox", "anchor"]
    assert [term.name for term in terms_of("fedprox", SimpleNamespace(anchor=0.0, prox_mu=0.1), ours)] == ["prox"]
    assert [term.anchor for term in terms_of(None, flags, ours)] == [0.5]  # a patched host has FedProx's itself


def test_a_term_may_train_by_itself_and_the_other_terms_still_join(run_builtin, strangers):
    strangers(term="sign")
    alone = run_builtin("--bias_benchmarks", "none", "--num_rounds", "1", "--use_peft", output="alone")
    client = alone[1].clients[0]
    assert client.extra == {"planned_rows": client.rows}
    size = client.update_norm  # two steps of the learning rate in every entry that has a gradient twice
    strangers(term="always_anchor")
    both = run_builtin("--bias_benchmarks", "none", "--num_rounds", "1", "--use_peft", output="both")
    assert both[1].clients[0].extra["steps"] == 2
    assert both[1].clients[0].update_norm != size
    assert both[1].clients[0].train_loss > client.train_loss


def test_a_term_joins_the_loss_and_its_numbers_are_recorded(run_builtin, strangers):
    plain = run_builtin(*LORA, "--num_rounds", "1", "--max_steps", "1", output="plain")[1]
    strangers(term="always_anchor")
    theta = []
    begin = Client.begin

    def spy(self: Client, client: int, round_idx: int, state: Any, **named: Any) -> ClientRound:
        theta.append({name: tensor.clone() for name, tensor in state.items()})  # averaged in place later
        return begin(self, client, round_idx, state, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "begin", spy)
        record = run_builtin(*LORA, "--num_rounds", "1", "--max_steps", "1", output="anchored")[1]
    added = 0.01 * sum(float((tensor.double() ** 2).sum()) for tensor in theta[0].values())
    for client, found in record.clients.items():
        assert found.train_loss == pytest.approx(plain.clients[client].train_loss + added, rel=1e-5)
    needed = record.clients[0].extra["client_memory_bytes"]
    assert [found.extra for found in record.clients.values()] == [
        {"steps": 1, "rounds": number, "had_last": 0.0, "client_memory_bytes": needed} for number in (1, 2, 3)
    ]


def test_what_a_term_and_its_clients_remember_survives_a_run_that_is_cut_off(run_builtin, strangers, tmp_path):
    strangers(term="always_anchor")
    run_builtin(*LORA, "--num_rounds", "3", output="whole")
    with cut_off_in():
        run_builtin(*LORA, "--num_rounds", "3", output="cut")
    files = {path.name for path in (tmp_path / "cut/checkpoints/round_002").iterdir()}
    assert {f"client-kept-{client}-last.safetensors" for client in range(3)} <= files
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    extra = [client["extra"] for client in comparable(tmp_path / "cut")[3]["clients"].values()]
    assert [numbers["rounds"] for numbers in extra] == [7, 8, 9]
    assert [numbers["had_last"] for numbers in extra] == [1.0] * 3


def test_a_trainable_says_what_is_trained_sent_averaged_and_saved(run_builtin, strangers, random_model, tmp_path):
    strangers(trainable="norms")
    records = run_builtin("--learning_rate", "1e-2", "--trainable", "norms", "--aggregation", "bama")
    assert all(client.update_norm > 0 for client in records[2].clients.values())
    before, after = load_file(random_model / "model.safetensors"), load_file(tmp_path / "run/model/model.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if "norm" in name
    }
    assert records[2].settings is None
    assert records[0].settings["trainable"] == "norms"


def test_a_trainable_named_against_use_peft_is_refused_and_full_trains_all(run_builtin, capsys, tmp_path):
    run_builtin(*LORA, "--trainable", "full", code=2)
    assert "--trainable full and --use_peft True contradict each other" in capsys.readouterr().err
    run_builtin("--trainable", "lora", "--peft_lora_target_modules", "all-linear", "--num_rounds", "1", output="lora")
    assert (tmp_path / "lora/adapter").is_dir()
    run_builtin(*WHOLE, "--trainable", "full", "--num_rounds", "1", output="full")
    assert (tmp_path / "full/model").is_dir()
    run_builtin("--trainable", "lroa", code=2)
    assert "Did you mean 'lora'?" in capsys.readouterr().err


def test_a_task_says_what_a_row_becomes(run_builtin, strangers, tmp_path, capsys):
    strangers(task="continue")
    seen = []
    fit = Client.fit

    def spy(self: Client, job: ClientRound, features: Any) -> Any:
        seen.extend(features)
        return fit(self, job, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "fit", spy)
        record = run_builtin(*LORA, "--task", "continue", "--num_rounds", "1")[1]
    assert all(feature["labels"] == feature["input_ids"] for feature in seen)
    assert record.clients[0].train_loss > 0
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["task"] == "continue"
    run_builtin(*LORA, "--task", "continue", "--template", "vicuna", "--num_rounds", "1", output="again")
    assert "--template has no effect without --task sft or dpo." in capsys.readouterr().err
