"""Offsite tuning on Flower nodes: the bytes of the built-in host, what a node lacks of the emulator, no other layer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is an extra of its own")

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.builtin.start import arguments_of
from fedbias_plugin.hosts.flower.parts import SentParts
from fedbias_plugin.hosts.flower.wire import Parcel, packed, send
from fedbias_plugin.hosts.flower.worker import Worker, asked
from fedbias_plugin.registry import build
from fedbias_plugin.training.models import load_model
from fedbias_plugin.training.parameters import prepared, read_state
from tests.hosts.flower.in_process_run import FIRST, assert_same_results, is_fit, run_config

KEPT = [0, 3, 4, 5]
"""Layers of the model that clients may hold: the emulator's and the adapter's; not 1 and 2."""
BOTH = ["emulator", "frozen layers"]
OFFSITE = "--trainable offsite --ot_drop_ratio 0.5 --ot_initial_rounds 1 --ot_align_steps 1"
CHILD = """
import json, sys
from fedbias_plugin.hosts.flower.wire import receive
from fedbias_plugin.hosts.flower.worker import Worker
worker = Worker()
answer = worker.answer(receive(sys.stdin.buffer.read))
names = list(worker._node.model.state_dict()) if worker._node else []
print("told", json.dumps({"meta": answer.meta, "names": names}), flush=True)
sys.stdin.buffer.read()
"""


@pytest.fixture(scope="module")
def deep_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with six layers."""
    folder = tmp_path_factory.mktemp("deep") / "model"
    shutil.copytree(random_model, folder)
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=6)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def flags(deep_model: Path) -> tuple[str, ...]:
    return ("--model_name_or_path", str(deep_model), *OFFSITE.split())


def test_nodes_without_weights_give_the_bytes_of_the_built_in_host_and_get_what_they_lack(
    run_builtin, run_flower, machines, deep_model, flags, tmp_path, monkeypatch
):
    shutil.copytree(deep_model, tmp_path / "outline", ignore=shutil.ignore_patterns("*.safetensors"))
    machines.nodes = 2
    machines.configs = {node: {"model_name_or_path": str(tmp_path / "outline")} for node in range(2)}
    sent, workers, joined = [], [], SentParts.joined

    def seen(self, client: int, request: Parcel, node: int) -> Parcel:
        found = joined(self, client, request, node)
        parts = sorted(label.removeprefix("part ") for label in found.states if label.startswith("part "))
        sent.append((request.meta["round_idx"] + 1, client, node - FIRST, parts))
        return found

    def starts_anew(request: Parcel, answer: Parcel) -> Parcel:
        if is_fit(request, 1, {1}):
            for worker in workers:
                if worker._node is not None and worker._node.clients == [1]:
                    worker._node = worker._made_of = None
        return answer

    class Seen(Worker):
        def __init__(self) -> None:
            super().__init__()
            workers.append(self)

    monkeypatch.setattr(SentParts, "joined", seen)
    monkeypatch.setattr("tests.hosts.flower.in_process_run.Worker", Seen)
    machines.change = starts_anew
    run_builtin(*flags, "--ot_prox", "0.1", output="builtin")
    records = run_flower(*flags, "--ot_prox", "0.1", output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")
    first = [(1, 0, 0, BOTH), (1, 1, 1, BOTH), (1, 2, 0, [])]
    assert sent[:3] == first  # once a node, not once a client
    assert sent[3:] == [(2, 0, 0, ["emulator"]), (2, 1, 1, ["emulator"]), (2, 2, 0, []), (2, 1, 1, BOTH)]
    down = [{client: one.extra["bytes_down"] for client, one in record.clients.items()} for record in records[1:]]
    assert down[0][0] == down[0][1] > down[0][2]
    assert down[1][1] > down[0][1] > down[1][0] > down[1][2] == down[0][2]  # what travelled, in vain too


def test_a_process_that_trains_a_client_holds_no_weight_of_the_layers_it_may_not_see(basis, deep_model, flags):
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into /proc")
    host, bias = arguments_of({}, run_config([*basis("run"), *flags, "--max_steps", "1", "--ot_align", "none"]))
    trainable = build("trainable", "offsite", host, bias)
    model = prepared(load_model(str(deep_model), device="cpu"), trainable, host.seed)
    trainable.start(model, None, None, None, 0)  # type: ignore[arg-type]  # it aligns nothing
    about = {"client": 0, "round_idx": 0, "mu": 0.0, "clients": 3}
    about["node_config"] = {"partition-id": 0, "num-partitions": 3}
    request = Parcel(asked("fit", vars(host) | vars(bias), **about), {"theta": packed(read_state(model))})
    request = SentParts(trainable).joined(0, request, 0)
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        send(request, process.stdin.write)
        process.stdin.flush()
        told = next(line for line in process.stdout if line.startswith(b"told "))
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        regions = private_memory(process.pid, maps)
        process.stdin.close()
    about = json.loads(told.removeprefix(b"told "))
    assert about["meta"].get("steps") == 1, about["meta"]
    assert {int(found[1]) for name in about["names"] if (found := re.search(r"\.layers\.(\d+)\.", name))} == {
        0,
        1,
        2,
        3,
    }
    assert not [line for line in maps if "safetensors" in line.rpartition("/")[2] and not line.endswith(".so")]
    weights = load_file(deep_model / "model.safetensors")
    looked_for = {layer: needle(weights[f"model.layers.{layer}.mlp.down_proj.weight"]) for layer in range(6)}
    assert [layer for layer, one in looked_for.items() if any(one in region for region in regions)] == KEPT


def needle(weight: torch.Tensor) -> bytes:
    """Numbers out of the middle of a weight."""
    return weight[len(weight) // 2].numpy().tobytes()[:64]


def private_memory(process: int, maps: list[str]) -> list[bytes]:
    """What a process holds in memory of its own, files left out."""
    regions = []
    try:
        with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
            for line in maps:
                place, rights, *rest = line.split()
                if rights.startswith("rw") and (len(rest) < 4 or rest[3] in ("[heap]", "[stack]")):
                    begin, end = (int(one, 16) for one in place.split("-"))
                    memory.seek(begin)
                    regions.append(memory.read(end - begin))
    except PermissionError:
        pytest.skip("nobody may look into another process here")
    return regions


def test_a_quantised_model_cannot_be_sent(run_flower, machines, flags):
    with pytest.raises(UserError, match=r"^--load_in_4bit: with --trainable offsite"):
        run_flower(*flags, "--load_in_4bit")
    assert not machines.asked


def test_a_node_with_another_model_is_refused(run_flower, machines, deep_model, flags, tmp_path):
    shutil.copytree(deep_model, tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    machines.configs[1] = {"model_name_or_path": str(tmp_path / "other")}
    with pytest.raises(UserError, match=r"client\(s\) 1 has another base model"):
        run_flower(*flags, "--ot_align", "none")
