"""``--local_states``: where the clients' states wait changes no number, and leaves nothing behind."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors import SafetensorError

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.federation import state_store
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.hosts.builtin import federation
from fedbias_plugin.hosts.builtin.arguments import HostArguments

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
WHOLE = ("--learning_rate", "1e-3")
# Of three clients two take part, so that SCAFFOLD's control variates wait over a round that their client sits out.
SAMPLED = ("--num_rounds", "3", "--num_clients", "3", "--sample_clients", "2")
TWO_CLIENTS = ("--scenario", "custom", "--biased_shares", "1,0")


@pytest.fixture
def files_seen(tmp_path, monkeypatch):
    """The names in the folder of the states, at the start of every client's training: one list for each."""
    seen = []
    original = Client.fit

    def spy(self, job, features):
        seen.append({path.stem for path in tmp_path.glob("*/.local_states/*")})
        return original(self, job, features)

    monkeypatch.setattr(Client, "fit", spy)
    return seen


@pytest.mark.parametrize(
    ("fed_alg", "flags", "aggregation"),
    [
        ("fedavg", WHOLE, "host"),
        ("scaffold", LORA, "bama"),
        ("scaffold", WHOLE, "host"),
        ("fedadam", LORA, "host"),
        ("fedprox", LORA, "bama"),
    ],
    ids=lambda value: value if isinstance(value, str) else "lora" if value is LORA else "whole",
)
def test_disk_gives_the_bytes_and_numbers_of_memory(run_builtin, tmp_path, fed_alg, flags, aggregation):
    flags = (*flags, *SAMPLED, "--fed_alg", fed_alg, "--aggregation", aggregation)
    first, second = (run_builtin(*flags, "--local_states", name, output=name) for name in ("memory", "disk"))
    for one, other in zip(first, second, strict=True):
        assert (one.global_, one.clients) == (other.global_, other.clients)
    name = "adapter/adapter_model.safetensors" if "--use_peft" in flags else "model/model.safetensors"
    assert (tmp_path / "memory" / name).read_bytes() == (tmp_path / "disk" / name).read_bytes()


@pytest.mark.parametrize("fed_alg", ["fedavg", "scaffold"])
def test_the_disk_holds_the_rounds_states_for_the_round_and_control_variates_for_the_run(
    run_builtin, tmp_path, files_seen, fed_alg
):
    run_builtin(*LORA, *TWO_CLIENTS, "--fed_alg", fed_alg, "--local_states", "disk")
    waiting, lasting = {"client-0"}, set()
    if fed_alg == "scaffold":
        waiting |= {"client-0-control", "client-0-control_delta"}
        lasting |= {"client-0-control", "client-1-control"}
    assert files_seen == [set(), waiting, lasting, waiting | lasting]
    assert not (tmp_path / "run/.local_states").exists()


def test_memory_writes_no_state(run_builtin, files_seen):
    run_builtin(*LORA, "--local_states", "memory")
    assert not any(files_seen)


@pytest.mark.parametrize(("free", "on_disk"), [(1000, True), (2**40, False)])
def test_auto_takes_the_disk_where_memory_is_short(run_builtin, files_seen, monkeypatch, free, on_disk):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    run_builtin(*LORA)
    assert any(files_seen) == on_disk


@pytest.mark.parametrize(("fed_alg", "copies"), [("fedavg", 4), ("scaffold", 4 + 4 + 4 + 10), ("local3", 1)])
def test_what_waits_is_a_state_a_client_and_for_scaffold_all_control_variates(fed_alg, copies):
    host = HostArguments(fed_alg=fed_alg, num_clients=10, sample_clients=4)
    state = {"a": torch.zeros(5, 2), "b": torch.zeros(3)}
    assert federation.waiting_bytes(host, terms_of(fed_alg, host, BiasArguments()), state) == copies * 13 * 4


def test_a_round_that_fails_leaves_no_state_behind(run_builtin, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **named):
        assert len(list((tmp_path / "run/.local_states").iterdir())) == 3
        raise federation.UserError("the round is lost")

    monkeypatch.setattr(federation.BiasSession, "receive", fail)
    run_builtin(*LORA, "--local_states", "disk", code=2)
    assert "the round is lost" in capsys.readouterr().err
    assert (tmp_path / "run/run.json").is_file()
    assert not (tmp_path / "run/.local_states").exists()


def test_a_disk_that_fills_up_ends_the_run_with_a_clear_sentence(run_builtin, tmp_path, monkeypatch, capsys):
    def fill_up(state, path, **options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(state_store, "write_state_file", fill_up)
    run_builtin(*LORA, "--local_states", "disk", code=2)
    error = capsys.readouterr().err
    assert str(tmp_path / "run/.local_states") in error
    assert "--local_states memory" in error
    assert not (tmp_path / "run/.local_states").exists()


def test_an_unknown_place_is_refused(run_builtin, capsys):
    run_builtin("--local_states", "dsk", code=2)
    assert "--local_states 'dsk' is unknown; choose one of auto, memory, disk. Did you mean 'disk'?" in (
        capsys.readouterr().err
    )
