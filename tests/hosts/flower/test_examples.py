"""The commands of docs/flower.md and of examples/flower, as far as Flower's own help knows them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

ROOT = Path(__file__).parents[3]
PROGRAMS = ("flower-superlink", "flower-supernode", "flower-superexec")
PLACES = ("docs/flower.md", *(f"examples/flower/fedbias-{name}.service" for name in ("supernode", "clientapps")))


def commands() -> list[list[str]]:
    """Every command of a page, a unit and the compose file that starts one of Flower's processes."""
    yaml = pytest.importorskip("yaml")
    texts = [(ROOT / place).read_text().replace("\\\n", " ") for place in PLACES]
    lines = [line.removeprefix("ExecStart=") for text in texts for line in text.splitlines()]
    services = yaml.safe_load((ROOT / "examples/flower/compose.yaml").read_text())["services"].values()
    split = [shlex.split(line) for line in lines if re.match(r"(/\S*/)?flower-super\w+ --", line)]
    return [*split, *(shlex.split(service["command"]) for service in services)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_flower_knows_the_flags(program: str) -> None:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    shown = subprocess.run([program, "--help"], env=env, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"--[a-z-]+", shown))
    of_program = [command for command in commands() if Path(command[0]).name == program]
    assert len(of_program) >= 2
    for command in of_program:
        assert {word for word in command if word.startswith("--")} <= known


def test_nodes_take_the_node_config() -> None:
    from flwr.common.config import parse_config_args

    from fedbias_plugin.hosts.flower.node import clients_of, own_flags

    given = [command[command.index("--node-config") + 1] for command in commands() if "--node-config" in command]
    assert len(given) == 3
    for text in given:
        config = parse_config_args([text])
        assert clients_of(config, 3)
        assert {"clean_dataset", "biased_dataset"} <= own_flags(config).keys()
