"""The variants of the double without the plugin: each runs, or fails, as the checkout it stands for was seen to do."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.openfedllm.runner import Run, run_script
from tests.hosts.openfedllm.test_double_unpatched import pytestmark as runs_with_pinned_libraries_only
from tests.hosts.openfedllm.variants import VARIANTS, make_variant, replace_once, variant_flags

SCRIPTS = ["main_sft.py", "main_dpo.py"]
SAVES = ["checkpoint-1", "checkpoint-2"]
Start = Callable[..., Run]


@pytest.fixture
def start(variant: Callable[[str], Path], host_model: Path, host_data: Path, output: Path, tmp_path: Path) -> Start:
    """``start("bench", "main_sft.py", "--fed_alg", "fedprox")`` -> how the run ended."""

    def run(name: str, script: str, *flags: str) -> Run:
        basis = variant_flags(name, script, host_model, host_data, output)
        return run_script(variant(name), script, *basis, *flags, log=tmp_path / "log.txt")

    return run


def written(output: Path) -> list[str]:
    """Names in the only run's folder, which is the one with ``args.json``."""
    (settings,) = output.rglob("args.json")
    return sorted(path.name for path in settings.parent.iterdir())


def losses(output: Path) -> np.ndarray:
    (path,) = output.rglob("training_loss.npy")
    return np.load(path)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_made_and_says_what_it_stands_for(tmp_path: Path, name: str) -> None:
    folder = make_variant(name, tmp_path / name)
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    assert VARIANTS[name]["stands_for"].endswith(".")


def test_an_edit_that_matches_twice_or_nowhere_is_refused(double: Path) -> None:
    with pytest.raises(ValueError, match=r"'no such line' stands 0 times in main_sft\.py"):
        replace_once(double / "main_sft.py", [["no such line", ""]])
    with pytest.raises(ValueError, match=r"'import' stands \d+ times in main_sft\.py"):
        replace_once(double / "main_sft.py", [["import", ""]])


@runs_with_pinned_libraries_only
@pytest.mark.parametrize(
    ("name", "script", "saves"),
    [
        *[("no_save_model_freq", script, []) for script in SCRIPTS],
        *[("early_2024", script, []) for script in SCRIPTS],
        ("bench", "main_sft.py", SAVES),
        *[("own_attack_flag", script, SAVES) for script in SCRIPTS],
        ("late_num_clients", "main_sft.py", SAVES),
        *[("own_template", script, SAVES) for script in SCRIPTS],
        *[("script_in_main", script, SAVES) for script in SCRIPTS],
        *[("submodule_imports", script, SAVES) for script in SCRIPTS],
    ],
)
def test_a_variant_trains_two_of_three_clients_a_round_and_writes_what_the_real_one_writes(
    start: Start, output: Path, name: str, script: str, saves: list[str]
) -> None:
    run = start(name, script)
    assert run.code == 0, run.text
    found = losses(output)
    assert found.shape == (3, 2)
    assert ((found > 0).sum(axis=0) == 2).all(), found
    assert ((found == -1).sum(axis=0) == 1).all(), found
    assert written(output) == ["args.json", *saves, "training_loss.npy"]


@runs_with_pinned_libraries_only
@pytest.mark.parametrize("name", ["script_in_main", "submodule_imports", "no_save_model_freq", "late_num_clients"])
def test_another_shape_alone_changes_no_loss(
    start: Start, double: Path, output: Path, tmp_path: Path, host_model: Path, host_data: Path, name: str
) -> None:
    assert start(name, "main_sft.py").code == 0
    (tmp_path / "other").mkdir()
    flags = variant_flags("script_in_main", "main_sft.py", host_model, host_data, tmp_path / "other")
    assert run_script(double, "main_sft.py", *flags, log=tmp_path / "log.txt").code == 0
    assert np.array_equal(losses(output), losses(tmp_path / "other"))


@runs_with_pinned_libraries_only
@pytest.mark.parametrize(
    ("name", "script", "flags", "symptom"),
    [
        ("no_save_model_freq", "main_sft.py", "--save_model_freq 1", "not used by the HfArgumentParser"),
        ("no_save_model_freq", "main_sft.py", "--fed_alg fedyogi", "ValueError: Unsupported `fed_alg`: fedyogi"),
        *[
            (name, script, "--gradient_checkpointing True", "RuntimeError: element 0 of tensors does not require grad")
            for name, script in [("no_save_model_freq", "main_sft.py"), ("early_2024", "main_dpo.py")]
        ],
        ("bench", "main_sft.py", "--num_clients 5", "IndexError: list index out of range"),
        ("bench", "main_dpo.py", "", "global_aggregate() missing 1 required positional argument: 'round_idx'"),
        ("bench", "main_dpo.py", "--dynamic_local_step True", "missing 1 required positional argument: 'round_idx'"),
        ("own_attack_flag", "main_sft.py", "--attack flip", "ValueError: Unknown attack type: flip"),
        ("own_attack_flag", "main_sft.py", "--fed_alg fedprox", "NotImplementedError: Federated aggregation method"),
        *[
            ("no_num_clients", script, "", "AttributeError: 'FedArguments' object has no attribute 'num_clients'")
            for script in SCRIPTS
        ],
    ],
)
def test_a_variant_fails_where_the_real_one_fails(
    start: Start, name: str, script: str, flags: str, symptom: str
) -> None:
    run = start(name, script, *flags.split())
    assert run.code == 1
    assert symptom in run.text


@runs_with_pinned_libraries_only
@pytest.mark.parametrize(
    ("name", "script", "algorithm"),
    [
        ("no_save_model_freq", "main_dpo.py", "fedyogi"),
        ("early_2024", "main_sft.py", "fedadagrad"),
        ("early_2024", "main_dpo.py", "fedadagrad"),
        ("bench", "main_sft.py", "fedadagrad"),
    ],
)
def test_a_variant_trains_with_an_algorithm_that_upstream_refuses(
    start: Start, output: Path, name: str, script: str, algorithm: str
) -> None:
    assert start(name, script, "--fed_alg", algorithm).code == 0
    assert (losses(output) > 0).sum() == 4


@runs_with_pinned_libraries_only
def test_without_save_model_freq_a_model_is_saved_after_50_rounds(start: Start, output: Path) -> None:
    assert start("no_save_model_freq", "main_sft.py", "--num_rounds", "50", "--max_steps", "1").code == 0
    assert written(output) == ["args.json", "checkpoint-50", "training_loss.npy"]


@runs_with_pinned_libraries_only
def test_the_hosts_own_attack_names_the_runs_folder_which_lies_four_levels_down(start: Start, output: Path) -> None:
    assert start("own_attack_flag", "main_sft.py", "--attack", "static_label_flipping").code == 0
    (settings,) = output.rglob("args.json")
    assert settings.parent.name.endswith("_static_label_flipping")
    assert len(settings.parent.relative_to(output).parts) == 4
    assert json.loads(settings.read_text())["script_args"]["seed"] == 2025
