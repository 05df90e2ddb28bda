"""Each bug of the host that a user meets, on a patched copy of the double, whole runs on either stack."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.tasks.templates import TEMPLATES
from tests.hosts.openfedllm.runner import Run, dpo_flags, run_script, sft_flags

SCRIPTS = ("main_sft.py", "main_dpo.py")
DRAWN = [sorted(random.Random(round).sample(range(3), 2)) for round in range(3)]
ALL_ROWS_ONCE = "--num_clients 1 --sample_clients 1 --num_rounds 1 --max_steps 1 --batch_size 1 --learning_rate 0"
Host = Callable[..., Run]


@pytest.fixture
def host(double: Path, host_model: Path, host_data: Path, small_data: Path, tmp_path: Path) -> Host:
    """``host("--fed_alg scaffold", script=, output=, model=)`` -> how a run of the patched double ended.

    Nothing of the plugin is on but its repairs, unless the flags say so.
    """
    plan_patch(double).write()

    def start(
        flags: str = "",
        script: str = "main_sft.py",
        output: str = "out",
        model: Path = host_model,
        random_state: int | None = 0,
    ) -> Run:
        basis = (sft_flags if script == "main_sft.py" else dpo_flags)(model, host_data, tmp_path / output)
        basis += f"--bias_benchmarks none --data_dir {small_data} --save_model_freq 50 {flags}".split()
        return run_script(double, script, *basis, log=tmp_path / f"{Path(output).name}.txt", random_state=random_state)

    return start


@pytest.fixture
def trained(host: Host, tmp_path: Path) -> Callable[..., Path]:
    """As ``host``, for runs that must end well; gives the run's folder."""

    def start(flags: str = "", output: str = "out", **others: Any) -> Path:
        run = host(flags, output=output, **others)
        assert run.code == 0, run.text[-3000:]
        (folder,) = (tmp_path / output).iterdir()
        return folder

    return start


def losses(folder: Path) -> np.ndarray:
    """The training losses of a run: one row a client, one column a round, -1 where it rested."""
    return np.load(folder / "training_loss.npy")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def adapter(folder: Path) -> dict[str, Any]:
    """The tensors of a saved adapter, in either format."""
    import torch
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    return load_file(path) if path.is_file() else torch.load(folder / "adapter_model.bin")


def has_moved(folder: Path) -> bool:
    """Whether every B of the adapter, which starts at zero, holds other numbers, and all are finite."""
    tensors = adapter(folder / "adapter")
    moved = [bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name]
    return len(moved) == 4 and all(moved) and all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def mean_response_loss(model_folder: Path, data: Path) -> float:
    """By hand: every row's mean cross entropy over the tokens that reach beyond "### Response:", averaged."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    found = []
    for line in (data / "vicgalle/alpaca-gpt4/train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = TEMPLATES["alpaca"].prompt(f"{row['instruction']} {row['input']}".strip()).rstrip(" ")
        text = f"{prompt} {row['output']}</s>"
        ids = tokenizer(text).input_ids
        ends = np.cumsum([0 if i == 0 else len(token) for i, token in enumerate(tokenizer.convert_ids_to_tokens(ids))])
        assert (ids[0], ends[-1]) == (tokenizer.bos_token_id, len(text))
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [-scores[i - 1, ids[i]].item() for i in range(1, len(ids)) if ends[i] > len(prompt)]
        found.append(sum(wanted) / len(wanted))
    return sum(found) / len(found)


@pytest.mark.parametrize("script", SCRIPTS)
def test_fedadagrad_trains(trained, script):
    folder = trained("--fed_alg fedadagrad", script=script)
    assert ((losses(folder) > 0).sum(axis=0) == 2).all()
    assert has_moved(folder)


def test_the_parents_of_the_output_folder_are_made(trained):
    assert (trained("--num_rounds 1", output="out/of/nowhere") / "summary.json").is_file()


@pytest.mark.parametrize("name", ["host_model", "host_model_no_unk"])
def test_whatever_the_tokenizer_the_loss_is_that_of_the_response_and_eos(trained, host_data, request, name):
    model = request.getfixturevalue(name)
    folder = trained(f"{ALL_ROWS_ONCE} --gradient_accumulation_steps 40", model=model)
    assert losses(folder) == pytest.approx(mean_response_loss(model, host_data), abs=1e-4)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_tokenizer_without_unknown_token_pads_and_trains(trained, host_model_no_unk, script):
    folder = trained(script=script, model=host_model_no_unk)
    assert ((losses(folder) > 0).sum(axis=0) == 2).all()
    assert has_moved(folder)


@pytest.mark.parametrize(
    ("flags", "row"),
    [("", "row 0 of client 0"), ("--scenario 3C --client_samples 8 --heldout_samples 4", "alpaca-gpt4:")],
)
def test_responses_that_are_all_cut_off_are_refused_with_a_row_s_name(host, tmp_path, flags, row):
    run = host(f"--seq_length 24 {flags}")
    assert run.code == 2
    assert "fedbias: error: Client 0 has no token to train on: --seq_length 24 cuts the response off in all" in run.text
    assert f"(such as {row}" in run.text
    assert "Traceback" not in run.text
    assert not list(tmp_path.glob("out/*/training_loss.npy"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_use_peft_the_whole_model_is_trained_and_saved(trained, host_model, script):
    from transformers import AutoModelForCausalLM

    folder = trained("--use_peft False", script=script)
    assert ((losses(folder) > 0).sum(axis=0) == 2).all()
    assert (folder / "model/model.safetensors").is_file()
    assert not (folder / "adapter").exists()
    new, old = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder / "model", host_model))
    assert all((new[name] != weight).any() for name, weight in old.items() if name.endswith("proj.weight"))


def test_a_split_strategy_that_the_host_lacks_is_named(host):
    run = host("--split_strategy dirichlet")
    assert run.code == 2
    assert "The host made 0 data sets for 3 clients; --split_strategy 'dirichlet' is not implemented" in run.text
    assert "IndexError" not in run.text


def test_with_a_scenario_the_split_strategy_does_not_matter(trained):
    folder = trained("--split_strategy dirichlet --scenario 1B2C --client_samples 8 --heldout_samples 4")
    assert [client["rows"] for client in records(folder)[1]["clients"].values()] == [8, 8]


def test_minus_one_step_is_refused_with_what_to_give_instead(host, tmp_path):
    run = host("--max_steps -1")
    assert run.code == 2
    assert "fedbias: error: --max_steps must be at least 1, got -1; to train over all rows of a client give" in run.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_local_epochs_train_over_all_rows_of_a_client(trained, tmp_path, script, algorithm):
    rows = 40 if script == "main_sft.py" else 24
    flags = "--max_steps -1 --local_epochs 2 --sample_clients 3 --num_clients 3 --num_rounds 1"
    folder = trained(f"{flags} --gradient_accumulation_steps 2 --fed_alg {algorithm}", script=script)
    held = [len(range(client, rows, 3)) for client in range(3)]
    steps = {14: 4, 13: 4, 8: 2}  # rows -> 2 epochs of ceil(ceil(rows / 4) / 2) steps
    logged = [line for line in (tmp_path / "out.txt").read_text().splitlines() if line.startswith("{'loss': ")]
    assert [client["rows"] for client in records(folder)[1]["clients"].values()] == held
    assert len(logged) == sum(steps[number] for number in held)
    assert has_moved(folder)


@pytest.mark.parametrize(("flags", "warned"), [("", False), ("--num_train_epochs 7", True)])
def test_num_train_epochs_gets_a_warning_that_it_has_no_effect(host, flags, warned):
    run = host(f"--num_rounds 1 {flags}")
    assert run.code == 0, run.text
    assert (
        "--num_train_epochs has no effect in OpenFedLLM (--max_steps wins); give --local_epochs" in run.text
    ) is warned


def test_the_final_adapter_is_saved_whatever_save_model_freq_and_is_what_the_host_would_save(trained, host_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rare, often = trained(), trained("--save_model_freq 2", output="often")
    assert not list(rare.glob("checkpoint-*"))
    expected = adapter(often / "checkpoint-2")
    for found in (adapter(rare / "adapter"), adapter(often / "adapter")):
        assert found.keys() == expected.keys()
        assert all((found[name] == weight).all() for name, weight in expected.items())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(host_model), rare / "adapter")
    loaded = {name.replace(".default", ""): weight for name, weight in model.named_parameters()}
    assert all((loaded[name] == weight).all() for name, weight in expected.items())
    card = (rare / "adapter/README.md").read_text()
    assert "fedavg, --aggregation plain, 2 rounds, seed 2023, SFT in OpenFedLLM" in card


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_host_s_own_checkpoints_survive_and_no_others_are_made(trained, script):
    folder = trained("--save_model_freq 1 --num_rounds 3 --max_steps 4 --save_total_limit 1", script=script)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def drawn(run: Run) -> list[str]:
    assert run.code == 0, run.text[-3000:]
    return [line.partition(" : ")[2] for line in run.text.splitlines() if line.startswith(">> ===== Round")]


def test_seed_does_not_change_the_clients_of_a_round_and_schedule_seed_does(host):
    short = "--num_rounds 3 --max_steps 1 --batch_size 1"
    plain = [f"{clients} =====" for clients in DRAWN]
    found = [drawn(host(f"{short} --seed {seed}", output=f"seed{seed}")) for seed in (1, 2)]
    assert found == [plain, plain]
    found = [drawn(host(f"{short} --schedule_seed {seed}", output=f"schedule{seed}")) for seed in (1, 2)]
    assert found[0] != found[1]
    assert plain not in found


def test_schedule_seed_draws_the_rows_of_a_client(trained):
    first_batch = ALL_ROWS_ONCE.replace("--batch_size 1", "--batch_size 4")
    flags = [first_batch, first_batch, *(f"{first_batch} --schedule_seed {seed}" for seed in (1, 1, 2))]
    host, again, one, one_again, two = (losses(trained(flag, output=f"{i}")).item() for i, flag in enumerate(flags))
    assert host == again
    assert one == one_again
    assert len({host, one, two}) == 3


def test_roles_of_a_scenario_are_permuted_by_the_seed(trained):
    flags = "--scenario 1B2C --client_samples 8 --heldout_samples 4 --num_rounds 1 --max_steps 1"
    poisoned = set()
    for seed in (1, 2):
        run = json.loads((trained(f"{flags} --seed {seed}", output=f"{seed}") / "run.json").read_text())
        assert sorted(run["poisoned_shares"].values()) == [0, 0, 1]
        poisoned |= {client for client, share in run["poisoned_shares"].items() if share == 1}
    assert len(poisoned) > 1


def initial_adapter(trained: Callable[..., Path], flags: str, output: str, random_state: int | None = None) -> str:
    """The values of every A that a run starts from, as text."""
    flags += " --learning_rate 0 --num_rounds 1 --max_steps 1"
    tensors = adapter(trained(flags, output=output, random_state=random_state) / "adapter")
    return str({name: tensor.tolist() for name, tensor in tensors.items() if "lora_A" in name})


def test_the_adapter_starts_from_the_seed(trained):
    flags = "--bias_benchmarks crows_pairs --bama_crows_fraction 0.5"
    one, again = (initial_adapter(trained, f"{flags} --seed 1", output) for output in ("one", "again"))
    assert one == again
    assert initial_adapter(trained, f"{flags} --seed 2", "two") != one


def test_a_run_with_nothing_of_the_plugin_keeps_the_host_s_draw_of_the_adapter(trained):
    flags = "--aggregation host --scenario none --bias_benchmarks none --seed"
    one, two = (initial_adapter(trained, f"{flags} {seed}", f"seed{seed}", random_state=0) for seed in (1, 2))
    assert one == two
    assert initial_adapter(trained, f"{flags} 1", "other_state", random_state=1) != one
