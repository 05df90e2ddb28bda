"""Three authenticated SuperNodes over TLS, each in processes of its own, give what ``fedbias run`` gives.

ALL_FLOWER_CASES=1 runs every algorithm with every rule, and the script as it stands with the node that it kills; one
of them runs without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedbias_plugin.hosts.flower.embedded import free_ports
from tests.hosts.run_folders import comparable, run_flags, without_bytes

NEEDED = [tool for tool in ("bash", "openssl", "ssh-keygen") if shutil.which(tool) is None]
NEEDED += [] if importlib.util.find_spec("flwr") else ["flwr"]
pytestmark = pytest.mark.skipif(bool(NEEDED), reason=f"not on this machine: {', '.join(NEEDED)}")
ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "run_scripts/flower_federation.sh"
ALL = [(algorithm, rule) for algorithm in ("fedavg", "fedadam", "fedprox", "scaffold") for rule in ("plain", "bama")]
IS_WHOLE = os.environ.get("ALL_FLOWER_CASES") == "1"
CASES = ALL if IS_WHOLE else [("scaffold", "bama")]
NODE = ("supernode", "superexec")
LORA = ["--num_clients", "3", "--use_peft", "true"]
UP, ENDED, LONGEST = 300, 120, 1200
"""Seconds that a federation may take to come up, and to end; and a run."""


def environment(**more: str) -> dict[str, str]:
    """As this process has it, with this Python's programs and package, and as many threads."""
    import torch

    found = {name: value for name, value in os.environ.items() if name != "FEDBIAS_DATA"} | more
    found["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), found["PATH"]])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), found.get("PYTHONPATH")]))
    found["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    return found


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a federation that is up."""
    folder = tmp_path_factory.mktemp("federation")
    log = folder / "script.log"
    with open(log, "wb") as stream:
        command = ["bash", str(SCRIPT), "--folder", str(folder), "--same_rows", "--hold"]
        script = subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream, start_new_session=True)
    try:
        limit = time.monotonic() + UP
        while not (folder / "ready").exists():
            assert script.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.2)
        yield folder
    finally:
        script.send_signal(signal.SIGTERM)
        script.wait(ENDED)
    assert still_there(folder) == []


def still_there(folder: Path) -> list[str]:
    """Names of the processes started by the script that have not ended."""
    found = []
    for path in folder.glob("*/*.pid"):
        try:
            os.killpg(int(path.read_text()), 0)
        except ProcessLookupError:
            continue
        found.append(f"{path.parent.name} {path.stem}")
    return found


def started_there(folder: Path, log: Path, *flags: str) -> subprocess.Popen[bytes]:
    """``fedbias flower run`` on the federation of ``folder``, in the background."""
    command = [sys.executable, "-m", "fedbias_plugin", "flower", "run", "--federation", "tls", *flags]
    with open(log, "ab") as stream:
        return subprocess.Popen(command, env=environment(FLWR_HOME=str(folder / "user")), stdout=stream, stderr=stream)


def run_there(folder: Path, log: Path, *flags: str) -> str:
    """``fedbias flower run`` on the federation of ``folder``, which must succeed; what it said."""
    code = started_there(folder, log, *flags).wait(LONGEST)
    assert code == 0, log.read_text()
    return log.read_text()


def assert_same_bytes(built_in: Path, flower: Path) -> None:
    """Equal records, but for times and bytes sent, and equal weights."""
    assert without_bytes(flower) == without_bytes(built_in)
    for path in built_in.rglob("*.safetensors"):
        if "checkpoints" not in path.parts:
            assert path.read_bytes() == (flower / path.relative_to(built_in)).read_bytes()


def wait_until(what: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    """Until ``what`` is true; fails where ``process`` ends before, or after :data:`LONGEST` seconds."""
    limit = time.monotonic() + LONGEST
    while not what():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.2)


def of_client(output: Path, client: str) -> list[str | None]:
    """Of every trained round so far why the client's update was refused; None where it was used."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line)["clients"][client]["refused"] for line in lines[1:] if line.endswith("\n")]


@pytest.mark.parametrize(("algorithm", "rule"), CASES)
def test_same_bytes_as_the_built_in_host(
    algorithm: str, rule: str, federation: Path, random_model: Path, small_data: Path, run_builtin, tmp_path: Path
) -> None:
    flags = ["--fed_alg", algorithm, "--aggregation", rule, "--num_rounds", "2", *LORA]
    run_builtin(*flags, output="built-in")
    run_there(federation, tmp_path / "log", *run_flags(random_model, small_data, tmp_path / "flower"), *flags)
    assert_same_bytes(tmp_path / "built-in", tmp_path / "flower")


def test_who_has_no_registered_key_stays_outside(federation: Path, tmp_path: Path) -> None:
    """A SuperNode with a key that nobody registered is turned away."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(tmp_path / "stranger")], check=True
    )
    connection = (federation / "user/config.toml").read_text()
    address = next(line.split('"')[1] for line in connection.splitlines() if line.startswith("address"))
    command = ["flower-supernode", "--superlink", address, "--root-certificates", str(federation / "ca/ca.pem")]
    command += ["--auth-supernode-private-key", str(tmp_path / "stranger"), "--port", str(free_ports(1)[0])]
    env = environment(FLWR_HOME=str(tmp_path / "flwr"))
    log = tmp_path / "stranger.log"  # a pipe would be kept open by what the SuperNode starts, which ends after it
    with open(log, "wb") as stream:
        ended = subprocess.run(command, env=env, stdout=stream, stderr=stream, timeout=UP, check=False)
    assert ended.returncode == 1, log.read_text()
    assert "Failed to activate SuperNode" in log.read_text()


@pytest.mark.skipif(not IS_WHOLE, reason="minutes of waiting: ALL_FLOWER_CASES=1 runs it")
def test_own_rows_and_a_killed_node(random_model: Path, small_data: Path, tmp_path: Path) -> None:
    """The script as it stands: nodes train on files of their own, one dies, the run ends without it."""
    folder = tmp_path / "federation"
    flags = [*run_flags(random_model, small_data, tmp_path / "unused"), "--aggregation", "bama", "--num_rounds", "3"]
    ran = subprocess.run(
        ["bash", str(SCRIPT), "--folder", str(folder), *flags],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert still_there(folder) == []
    dealt = json.loads((folder / "output/manifest.json").read_text())["clients"]
    assert [client["sources"] for client in dealt] == [{f"{k}/{k}.jsonl": 8} for k in ("clean", "biased", "clean")]
    last = comparable(folder / "output")[-1]
    assert last["round"] == 3
    refused = {client: about["refused"] for client, about in last["clients"].items()}
    assert refused == {"0": None, "1": None, "2": refused["2"]}
    assert refused["2"]
    assert any("client 2 is missing" in warning for warning in last["warnings"])
    assert (folder / "output/summary.json").is_file()


@pytest.mark.skipif(not IS_WHOLE, reason="minutes of waiting: ALL_FLOWER_CASES=1 runs it")
def test_a_run_whose_serverapp_died_goes_on_to_the_same_bytes(
    federation: Path, random_model: Path, small_data: Path, run_builtin, tmp_path: Path
) -> None:
    flags = ["--fed_alg", "scaffold", "--aggregation", "bama", "--num_rounds", "3", *LORA]
    run_builtin(*flags, output="built-in")
    output, log = tmp_path / "flower", tmp_path / "log"
    run = started_there(federation, log, *run_flags(random_model, small_data, output), *flags)
    wait_until(lambda: of_client(output, "0"), run, log)
    server = psutil.Process(int((federation / "server/superexec.pid").read_text()))
    apps = [one for one in server.children(recursive=True) if "flwr-serverapp" in " ".join(one.cmdline())]
    assert apps, [one.cmdline() for one in server.children(recursive=True)]
    for app in apps:
        app.kill()
    assert run.wait(LONGEST) not in (0, None), log.read_text()
    assert len(of_client(output, "0")) < 3
    run_there(federation, log, "--resume", str(output))
    assert_same_bytes(tmp_path / "built-in", output)


@pytest.mark.skipif(not IS_WHOLE, reason="minutes of waiting: ALL_FLOWER_CASES=1 runs it")
def test_a_killed_node_takes_part_again_with_its_key(
    federation: Path, random_model: Path, small_data: Path, tmp_path: Path
) -> None:
    """As systemd does it: started again whenever Flower refuses it, until its old connection has expired. Last here."""
    output, log, key = tmp_path / "flower", tmp_path / "log", "1"
    flags = [*run_flags(random_model, small_data, output), "--num_rounds", "100", *LORA]
    run = started_there(federation, log, *flags)
    wait_until(lambda: of_client(output, key), run, log)
    old = {name: psutil.Process(int((federation / f"node{key}/{name}.pid").read_text())) for name in NODE}
    commands = {name: (process.cmdline(), process.cwd(), process.environ()) for name, process in old.items()}
    for process in old.values():
        os.killpg(process.pid, signal.SIGKILL)
    again: dict[str, subprocess.Popen[bytes]] = {}

    def is_back() -> bool:
        """Whether a round was used after one that was not; starts what is not running."""
        for name, (command, folder, env) in commands.items():
            if name not in again or again[name].poll() is not None:
                with open(tmp_path / f"{name}.log", "ab") as stream:
                    again[name] = subprocess.Popen(
                        command, cwd=folder, env=env, stdout=stream, stderr=stream, start_new_session=True
                    )
        rounds = of_client(output, key)
        missed = [number for number, reason in enumerate(rounds) if reason]
        return bool(missed) and rounds[-1] is None

    try:
        wait_until(is_back, run, log)
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait(ENDED)
        for process in again.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
