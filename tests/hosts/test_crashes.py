"""Runs that are killed, told to stop or left without disk, and go on: at the end the bytes are those of a quiet run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.federation.checkpoints import CheckpointFolder
from tests.hosts.run_folders import assert_same_run, comparable

KILLS, KILLED = 15, -signal.SIGKILL


class Server:
    """Starts runs in forks of one process; see crash_server.py."""

    def __init__(self, log: Path) -> None:
        self.log = log
        command = [sys.executable, str(Path(__file__).with_name("crash_server.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, *args: str, **request: Any) -> int:
        """The process id of ``fedbias ARGS``."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"args": args, "log": str(self.log), **request}) + "\n")
        self.process.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> dict[str, int]:
        """How it ended."""
        return self._answer()

    def run(self, *args: str, **request: Any) -> dict[str, int]:
        self.start(*args, **request)
        return self.wait()

    def _answer(self) -> dict[str, int]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("log") / "log.txt")
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def flags(random_model: Path, small_data: Path) -> list[str]:
    """SCAFFOLD and BAMA, which remember most, for three rounds."""
    text = f"run --model_name_or_path {random_model} --data_dir {small_data} --num_rounds 3 --fed_alg scaffold "
    text += (
        "--use_peft --peft_lora_target_modules all-linear --aggregation bama --client_samples 8 --heldout_samples 4 "
    )
    text += "--max_steps 2 --batch_size 4 --learning_rate 5e-3 --gradient_checkpointing false"
    return text.split()


@pytest.fixture(scope="module")
def quiet(server: Server, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, float]:
    """A run that nobody disturbs, how many moments it has, and the seconds it takes."""
    output = tmp_path_factory.mktemp("quiet") / "run"
    server.start(*flags, "--output_dir", str(output))
    start = time.monotonic()
    ended = server.wait()
    assert ended["status"] == 0, server.log.read_text()
    return output, ended["moments"], time.monotonic() - start


def begin_or_resume(server: Server, flags: list[str], output: Path, **request: Any) -> int:
    """Start the run, or resume it where it left anything; returns its process id."""
    begun = not CheckpointFolder(output).is_empty or (output / "summary.json").exists()
    return server.start(
        *(["run", "--resume", str(output)] if begun else [*flags, "--output_dir", str(output)]), **request
    )


def test_fifteen_kills_lose_no_round_and_change_no_byte(server, flags, quiet, tmp_path):
    whole, moments, seconds = quiet
    choice = random.Random(5)
    kills = 0
    for number in itertools.count():
        output, status = tmp_path / f"run{number}", KILLED
        while status == KILLED:
            at_a_moment = kills < KILLS and choice.random() < 2 / 3
            pid = begin_or_resume(
                server, flags, output, **({"moment": choice.randint(1, moments)} if at_a_moment else {})
            )
            if kills < KILLS and not at_a_moment:
                time.sleep(choice.uniform(0, seconds))
                with contextlib.suppress(ProcessLookupError):  # it was quicker
                    os.kill(pid, signal.SIGKILL)
            status = server.wait()["status"]
            kills += status == KILLED
        assert status == 0, server.log.read_text()
        assert_same_run(whole, output)
        if kills == KILLS:
            break


@pytest.mark.parametrize("moment", range(1, 13))
def test_a_run_killed_before_it_has_anything_to_keep_can_be_begun_again(server, flags, tmp_path, moment):
    output = tmp_path / "run"
    for fatal in (moment, moment, 40):
        begin_or_resume(server, flags, output, moment=fatal)
        assert server.wait()["status"] == KILLED, server.log.read_text()
    assert (output / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("signal_number", "code", "every"),
    [(signal.SIGTERM, 143, "1"), (signal.SIGTERM, 143, "5"), (signal.SIGINT, 130, "5"), (signal.SIGHUP, 129, "5")],
)
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_how_to_go_on(
    server, flags, quiet, tmp_path, signal_number, code, every
):
    output, server.log = tmp_path / "run", tmp_path / "log.txt"
    pid = server.start(*flags, "--output_dir", str(output), "--checkpoint_every", every)
    while not (output / "metrics.jsonl").exists() or len((output / "metrics.jsonl").read_text().splitlines()) < 2:
        time.sleep(0.01)
    os.kill(pid, signal_number)
    assert server.wait()["status"] == code
    said = server.log.read_text()
    assert f"{signal.Signals(signal_number).name}: the run stops after this step" in said
    assert f"fedbias run --resume {output}" in said
    rounds = len(comparable(output)) - 1
    assert (output / f"checkpoints/round_{rounds:03d}").is_dir()
    assert server.run("run", "--resume", str(output))["status"] == 0
    assert f"resumed after round {rounds} of 3" in server.log.read_text()
    assert_same_run(quiet[0], output)


@pytest.mark.parametrize("limit", [2_000, 9_000, 30_000])
def test_a_disk_that_fills_up_ends_with_one_line_and_the_run_goes_on_when_there_is_room(
    server, flags, quiet, tmp_path, limit
):
    output, server.log = tmp_path / "run", tmp_path / "log.txt"
    assert server.run(*flags, "--output_dir", str(output), file_limit=limit)["status"] == 2
    said = server.log.read_text()
    assert "Traceback" not in said, said
    assert "fedbias: error:" in said
    begin_or_resume(server, flags, output)
    assert server.wait()["status"] == 0, server.log.read_text()
    assert_same_run(quiet[0], output)


def test_a_folder_that_became_read_only_ends_with_one_line_and_the_run_goes_on_later(server, flags, quiet, tmp_path):
    output, server.log = tmp_path / "run", tmp_path / "log.txt"
    assert server.run(*flags, "--output_dir", str(output), moment=100)["status"] == KILLED
    folders = [output, *(path for path in output.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    assert server.run("run", "--resume", str(output), obeys_modes=True)["status"] == 2
    said = server.log.read_text()
    assert "Traceback" not in said, said
    assert f"fedbias: error: {output}" in said
    for folder in folders:
        folder.chmod(0o755)
    assert server.run("run", "--resume", str(output))["status"] == 0
    assert_same_run(quiet[0], output)
