"""Several processes, started as a user starts them, score what one process scores."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from fedbias_plugin.scoring.processes import ALONE, Processes, launched

EVALUATE = ["-m", "fedbias_plugin", "evaluate", "--dtype", "float32"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_two_processes_give_the_results_of_one_bit_for_bit(tmp_path, random_model, small_data):
    flags = ["--model_name_or_path", str(random_model), "--data_dir", str(small_data), "--bias_batch_tokens", "64"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert run(*EVALUATE, *flags, "--output", str(one))[0] == 0
    code, output, errors = launch(*EVALUATE, *flags, "--output", str(two))
    assert code == 0, errors
    assert json.loads(two.read_text()) == json.loads(one.read_text())
    assert errors.count(f"written: {two}") == 1
    assert output.count("CrowS-Pairs") == 1


def launch(*command):
    """In two processes, as ``accelerate launch`` starts one for each GPU."""
    return run("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), *command)


DISAGREEING = """
import atexit, contextlib, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring.processes import join_processes
from fedbias_plugin.scoring.scorer import ScoreRequest, SentenceScorer

def threads():
    names = set()
    for name in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            names.add(name.read_text().strip())
    return sorted(names)

atexit.register(lambda: print(f"at the end: {threads()}\\n", end="", flush=True))
processes = join_processes()
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
def forward(*args, **kwargs):
    raise RuntimeError("out of memory")

scorer = SentenceScorer(model, tokenizer, processes=processes, max_batch_tokens=16)
for what in ("weights", "memory"):
    if processes.rank == 1:
        if what == "weights":
            model.lm_head.weight.data.mul_(2)
        else:
            model.forward = forward
    try:
        scorer.score([ScoreRequest(f"The nurse is {word}.") for word in ("kind", "rude", "calm", "loud", "brave")])
    except (UserError, RuntimeError) as error:
        print(f"{what}, process {processes.rank}: {error}\\n", end="", flush=True)
"""


def test_processes_that_cannot_go_on_together_all_say_so(tmp_path, random_model):
    script = tmp_path / "disagreeing.py"
    script.write_text(DISAGREEING)
    code, output, errors = launch(str(script), str(random_model))
    assert code == 0, errors
    said = [line for line in output.splitlines() if line.startswith(("weights, process", "memory, process"))]
    expected = {
        ("weights", 0): "do not hold the same model",
        ("weights", 1): "do not hold the same model",
        ("memory", 0): "scoring failed in process 1",
        ("memory", 1): "out of memory",
    }
    assert len(said) == len(expected), output
    for (what, rank), reason in expected.items():
        (line,) = [line for line in said if line.startswith(f"{what}, process {rank}: ")]
        assert reason in line
    threads = [line for line in output.splitlines() if line.startswith("at the end: [")]
    assert len(threads) == 2, output
    assert "gloo" not in "".join(threads), "a thread of gloo that outlives its group can abort the interpreter's end"


def test_training_in_several_processes_is_refused(tmp_path):
    os.environ["WORLD_SIZE"] = "2"
    try:
        code, _, errors = run("-m", "fedbias_plugin", "run", "--output_dir", str(tmp_path / "out"))
    finally:
        del os.environ["WORLD_SIZE"]
    assert code != 0
    assert "trains in one process, and a launcher started 2" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "number"), [(None, 1), ("1", 1), ("4", 4), ("", 1)])
def test_the_number_of_processes_is_the_launchers(value, number, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if value is not None:
        monkeypatch.setenv("WORLD_SIZE", value)
    assert launched() == number


def test_every_batch_belongs_to_one_process():
    group = [Processes(rank, 3) for rank in range(3)]
    assert all(sum(member.is_mine(batch) for member in group) == 1 for batch in range(10))
    assert [member.is_main for member in group] == [True, False, False]
    assert ALONE.is_main
    assert ALONE.is_mine(7)


def test_alone_the_total_is_what_came_in():
    values = np.asarray([1.0, np.nan])
    assert ALONE.total(values) is values
