"""``configs/wandb_sweep.yaml``: run by W&B's own agent, whose commands the parser of ``fedbias run`` takes."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.cli.main import build_parser
from fedbias_plugin.cli.run import resolve_arguments
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.tracking.records import RoundRecord
from fedbias_plugin.tracking.series import highlights

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "configs" / "wandb_sweep.yaml").read_text())
STUB = """#!/bin/sh
printf '%s\\n' "$@" > "$ARGUMENTS_OF_RUNS/$WANDB_RUN_ID"
"""


def combinations() -> list[dict[str, Any]]:
    """Every setting of the grid, as W&B hands it to an agent."""
    choices = [parameter.get("values", [parameter.get("value")]) for parameter in CONFIG["parameters"].values()]
    names = CONFIG["parameters"]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*choices)]


def test_the_definition_is_one_that_wandb_takes() -> None:
    sweeps = pytest.importorskip("wandb.apis.public.sweeps", reason="the wandb package is not installed")
    assert set(CONFIG) == {"program", "method", "metric", "parameters", "command"}
    assert (CONFIG["method"], CONFIG["metric"]["goal"]) == ("grid", "minimize")
    assert all(set(parameter) in ({"value"}, {"values"}) for parameter in CONFIG["parameters"].values())
    assert sweeps._validate_config_and_fill_distribution(CONFIG) == CONFIG


def test_what_is_minimised_is_a_number_that_every_run_has_in_its_summary(
    make_record: Callable[[int], RoundRecord],
) -> None:
    assert highlights([make_record(0), make_record(2)])[CONFIG["metric"]["name"]] == (3 + 7) / 2


def test_every_parameter_is_a_flag_and_the_grid_holds_three_seeds_of_each_setting() -> None:
    flags = {*HostArguments.__dataclass_fields__, *BiasArguments.__dataclass_fields__}
    assert set(CONFIG["parameters"]) <= flags
    seeds = [setting["seed"] for setting in combinations()]
    assert {seed: seeds.count(seed) for seed in seeds} == dict.fromkeys((2023, 2024, 2025), 16)


def test_the_agent_starts_runs_that_parse_each_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = pytest.importorskip("wandb.wandb_agent", reason="the wandb package is not installed")
    stub, seen = tmp_path / "bin" / "fedbias", tmp_path / "seen"
    stub.parent.mkdir()
    seen.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ARGUMENTS_OF_RUNS", str(seen))
    for name in ("WANDB_RUN_ID", "WANDB_DIR", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    settings = {"run1": combinations()[0], "run2": combinations()[-1]}
    agent = agents.Agent(api=None, queue=None, sweep_id="s")
    agent._sweep_command = list(CONFIG["command"])
    for run_id, setting in settings.items():
        wrapped = {name: {"value": value} for name, value in setting.items()}
        agent._command_run({"type": "run", "run_id": run_id, "program": CONFIG["program"], "args": wrapped})
        agent._run_processes[run_id].wait()
    folders = set()
    for run_id, setting in settings.items():
        arguments = (seen / run_id).read_text().splitlines()
        host, bias = resolve_arguments(build_parser().parse_args(arguments))
        resolved = {**vars(host), **vars(bias)}
        assert {name: resolved[name] for name in setting} == setting, json.dumps(arguments)
        assert host.output_dir == f"runs/wandb_sweep/{run_id}"
        folders.add(host.output_dir)
    assert len(folders) == 2
