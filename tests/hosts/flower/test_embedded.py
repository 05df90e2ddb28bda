"""``fedbias flower run`` with real processes: what is killed, stopped or left alone ends in the same bytes. Slow.

ALL_FLOWER_CASES=1 also ends the command by SIGTERM and SIGKILL, and kills the SuperLink.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is an extra of its own")
pytest.importorskip("psutil", reason="processes are looked at with it")

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from flower_processes import FlowerRun, kill, rounds_in, wait_for

from fedbias_plugin.cli.main import main
from tests.hosts.flower.in_process_run import assert_same_results

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
FLAGS = "--use_peft --peft_lora_target_modules all-linear --fed_alg scaffold --aggregation bama"
ROUNDS = "6" if os.environ.get("ALL_FLOWER_CASES") == "1" else "3"


@pytest.fixture
def start(basis, tmp_path: Path) -> Iterator[Callable[..., FlowerRun]]:
    """``start("--resume", folder)``: a run in processes, which the test's end kills."""
    runs: list[FlowerRun] = []

    def begin(*flags: str) -> FlowerRun:
        runs.append(FlowerRun(list(flags), tmp_path / "log.txt"))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def test_a_run_that_is_stopped_and_killed_in_many_ways_ends_with_the_bytes_of_a_quiet_one(basis, start, tmp_path):
    assert main(["run", *basis("quiet"), *FLAGS.split(), "--num_rounds", ROUNDS]) == 0
    output, log = tmp_path / "run", tmp_path / "log.txt"
    resume = ("--resume", str(output))

    def reaches(run: FlowerRun, rounds: int) -> FlowerRun:
        assert wait_for(lambda: rounds_in(output) >= rounds or run.process.poll() is not None)
        assert run.process.poll() is None, log.read_text()
        return run

    run = reaches(start(*basis("run"), *FLAGS.split(), "--num_rounds", ROUNDS, "--supernodes", "2"), 1)
    assert kill(run.living("worker")[0])  # its client is trained again
    reaches(run, 2).process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    assert not run.living()
    assert f"fedbias flower run --resume {output}" in log.read_text()

    if os.environ.get("ALL_FLOWER_CASES") == "1":
        run = reaches(start(*resume, "--supernodes", "2"), 3)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
        assert not run.living()

        run = reaches(start(*resume, "--supernodes", "1"), 4)
        run.process.kill()
        assert wait_for(lambda: not run.living(), 60)

        run = reaches(start(*resume, "--supernodes", "1"), 5)
        assert kill(run.living("superlink")[0])
        assert run.wait() == 2
        assert "Flower's superlink ended with -9" in log.read_text()
        assert wait_for(lambda: not run.living(), 60)

    assert start(*resume, "--supernodes", "1").wait() == 0, log.read_text()  # who trains whom changes no byte
    assert_same_results(tmp_path / "quiet", output)
