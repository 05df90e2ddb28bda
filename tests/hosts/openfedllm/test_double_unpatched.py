"""The host without the plugin, shown on its double with the libraries it pins: how it trains, and how it fails."""

from __future__ import annotations

import importlib.metadata
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.openfedllm.runner import Run, dpo_flags, run_script, sft_flags

PINNED = {"transformers": "4.31.0", "trl": "0.7.2", "peft": "0.4.0"}
ADAPTER = "checkpoint-*/adapter_model.bin"
DRAWN = [sorted(random.Random(round).sample(range(3), 2)) for round in range(3)]
Host = Callable[..., Run]


def installed(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


pytestmark = pytest.mark.skipif(
    any(installed(library) != version for library, version in PINNED.items()),
    reason="OpenFedLLM runs unpatched with the libraries it pins only: "
    + ", ".join(f"{library} {version} (here {installed(library)})" for library, version in PINNED.items()),
)


@pytest.fixture
def host(double: Path, host_model: Path, host_data: Path, output: Path, tmp_path: Path) -> Host:
    """``host("--fed_alg", "scaffold", script="main_dpo.py", model=folder)`` -> how the run ended."""

    def start(*flags: str, script: str = "main_sft.py", model: Path = host_model, random_state: int | None = 0) -> Run:
        basis = (sft_flags if script == "main_sft.py" else dpo_flags)(model, host_data, output)
        return run_script(double, script, *basis, *flags, log=tmp_path / "log.txt", random_state=random_state)

    return start


def losses(output: Path) -> np.ndarray:
    """The training losses of the only run in ``output``: one row a client, one column a round, -1 where it rested."""
    (path,) = output.glob("*/training_loss.npy")
    return np.load(path)


@pytest.mark.parametrize(
    ("script", "algorithm"),
    [("main_sft.py", name) for name in ("fedavg", "fedprox", "scaffold", "fedavgm", "fedyogi", "fedadam")]
    + [("main_dpo.py", name) for name in ("fedavg", "fedprox", "scaffold")],
)
def test_the_host_trains_two_of_three_clients_a_round_and_saves_the_global_model(
    host: Host, output: Path, script: str, algorithm: str
) -> None:
    run = host("--fed_alg", algorithm, script=script)
    assert run.code == 0, run.text
    found = losses(output)
    assert found.shape == (3, 2)
    assert ((found > 0).sum(axis=0) == 2).all(), found
    assert ((found == -1).sum(axis=0) == 1).all(), found
    assert len(list(output.glob(f"*/{ADAPTER}"))) == 2


@pytest.mark.parametrize(
    ("script", "flags", "symptom"),
    [
        ("main_sft.py", "--fed_alg fedadagrad", "ValueError: Unsupported `fed_alg`: fedadagrad"),
        ("main_dpo.py", "--fed_alg fedadagrad", "ValueError: Unsupported `fed_alg`: fedadagrad"),
        ("main_sft.py", "--output_dir out/of/nowhere", "FileNotFoundError: "),
        ("main_sft.py", "--use_peft False", "AttributeError: 'NoneType' object has no attribute"),
        ("main_sft.py", "--split_strategy dirichlet", "IndexError: list index out of range"),
        ("main_sft.py", "--max_steps -1", "ValueError: Sample larger than population or is negative"),
    ],
)
def test_a_run_that_these_flags_ask_for_ends_in_an_error(host: Host, script: str, flags: str, symptom: str) -> None:
    run = host(*flags.split(), script=script)
    assert run.code == 1
    assert symptom in run.text


def test_a_tokenizer_without_unknown_token_cannot_pad(host: Host, host_model_no_unk: Path) -> None:
    run = host(model=host_model_no_unk)
    assert run.code == 1
    assert "Asking to pad but the tokenizer does not have a padding token" in run.text


def test_a_tokenizer_that_differs_from_llama_2s_trains_nothing_and_succeeds(
    host: Host, host_model_no_unk: Path, output: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(host_model_no_unk, tmp_path / "model"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "</s>"}))
    assert host(model=model).code == 0
    assert sorted(losses(output).ravel()) == [-1, -1, 0, 0, 0, 0]


def test_rows_longer_than_the_sequence_train_nothing_and_succeed(host: Host, output: Path) -> None:
    assert host("--seq_length", "24").code == 0
    assert sorted(losses(output).ravel()) == [-1, -1, 0, 0, 0, 0]


def test_only_the_last_digit_of_a_local_client_counts(host: Host, output: Path) -> None:
    assert host("--fed_alg", "local12").code == 0
    assert (losses(output) > 0).tolist() == [[False, False], [False, False], [True, True]]


def test_the_number_of_epochs_changes_nothing(host: Host, output: Path) -> None:
    found = []
    for epochs in ("1", "7"):
        assert host("--num_train_epochs", epochs).code == 0
        found.append(losses(output))
        shutil.rmtree(next(output.iterdir()))
    assert np.array_equal(*found)


def test_a_run_shorter_than_save_model_freq_saves_no_model(host: Host, output: Path) -> None:
    assert host("--save_model_freq", "50").code == 0
    assert losses(output).shape == (3, 2)
    assert list(output.glob("*/checkpoint-*")) == []


def test_the_same_seed_starts_from_other_adapters(host: Host, output: Path) -> None:
    import torch

    adapters = []
    for _ in range(2):
        assert host("--seed", "1", "--learning_rate", "0", "--num_rounds", "1", random_state=None).code == 0
        adapters.append(torch.load(next(output.glob(f"*/{ADAPTER}"))))
        shutil.rmtree(next(output.iterdir()))
    assert len(adapters[0]) == 8
    for name, weight in adapters[0].items():
        assert torch.equal(weight, adapters[1][name]) == ("lora_B" in name), name


def test_another_seed_draws_the_same_clients(host: Host) -> None:
    runs = [host("--seed", seed, "--num_rounds", "3", "--max_steps", "1") for seed in ("1", "2")]
    drawn = [[line for line in run.text.splitlines() if line.startswith(">> ===== Round")] for run in runs]
    assert drawn[0] == [f">> ===== Round {n} : {clients} =====" for n, clients in enumerate(DRAWN, start=1)]
    assert drawn[0] == drawn[1]
