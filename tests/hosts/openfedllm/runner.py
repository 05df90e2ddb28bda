"""Runs the host's scripts quickly: one process loads the libraries once and forks for every run.

That process is a fresh interpreter, not pytest's own: neither threads nor patches of other tests leak into a run.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 300.0
REPOSITORY = Path(__file__).parents[3]
PRELOADED = {
    "torch": [],
    "torch._dynamo": [],  # which the first optimizer of a process loads
    "pandas": [],
    "accelerate": ["Accelerator"],
    "datasets": ["load_dataset"],
    "transformers": ["AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "Trainer", "HfArgumentParser"],
    "peft": ["get_peft_model"],
    "trl": ["SFTTrainer", "DPOTrainer"],
}
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Run:
    """How a script ended and what it wrote to standard output and standard error.

    ``code`` is the exit status, or minus the number of the signal that ended it.
    """

    code: int
    text: str


def run_script(
    folder: Path,
    script: str,
    *flags: str,
    log: Path,
    env: dict[str, str] | None = None,
    random_state: int | None = 0,
) -> Run:
    """Runs ``python script *flags`` in ``folder`` and keeps what it wrote in ``log``.

    ``env`` is set in the run alone, after the libraries were loaded. The run sees neither what pytest's process sets in
    ``os.environ`` after the first run, nor any variable ``FEDBIAS_*`` or ``WANDB_*`` that is not in ``env``. A run of
    more than 300 seconds is killed.

    ``random_state`` is what the generators of Python, numpy and torch start from, so that scripts that never seed them
    repeat themselves; None draws it anew, as a new interpreter would.
    """
    global _server
    if _server is None or _server.process.poll() is not None:
        _server = _Server()
    request = {"folder": str(folder), "script": script, "flags": flags, "log": str(log), "env": env or {}}
    code = _server.ask({**request, "random_state": random_state})
    return Run(code, log.read_text(encoding="utf-8", errors="replace"))


def sft_flags(model: Path, data: Path, output: Path) -> list[str]:
    """A short run of ``main_sft.py``: two of three clients in each of two rounds, two steps of four rows each.

    A flag given again after these wins.
    """
    flags = f"--model_name_or_path {model} --local_data_dir {data}/ --dataset_name vicgalle/alpaca-gpt4 --use_peft "
    flags += f"--output_dir {output} --num_clients 3 --sample_clients 2 --num_rounds 2 --max_steps 2 --batch_size 4 "
    flags += "--learning_rate 5e-3 --logging_steps 1 --gradient_checkpointing False --save_model_freq 1"
    return flags.split()


def dpo_flags(model: Path, data: Path, output: Path) -> list[str]:
    """The same for ``main_dpo.py``."""
    return [*sft_flags(model, data, output), "--dataset_name", "HuggingFaceH4/ultrafeedback_binarized"]


CUT_OFF = """
import builtins, os, runpy, signal, sys
module = {{"print": builtins, "os.replace": os}}["{function}"]
function = getattr(module, "{function}".split(".")[-1])
def cut(*args, **kwargs):
    if "{text}" in str(args[-1]):
        os.kill(os.getpid(), signal.{how})
    return function(*args, **kwargs)
setattr(module, function.__name__, cut)
sys.argv[0] = "{script}"
runpy.run_path("{script}", run_name="__main__")
"""


def cut_off(wrapper: Path, script: str, function: str, text: str, how: str = "SIGKILL") -> Path:
    """Writes ``wrapper``: the script, stopped when ``function`` gets a last argument with ``text`` in it."""
    wrapper.write_text(CUT_OFF.format(script=script, function=function, text=text, how=how))
    return wrapper


class _Server:
    """The process that forks, and its folder for caches of Hugging Face, which goes when pytest ends."""

    def __init__(self) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="fedbias_hosts_")
        self.errors = Path(self.home.name, "server.log")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("FEDBIAS_", "WANDB_", "HF_"))}
        environment |= QUIET | {"HF_HOME": self.home.name, "HF_DATASETS_CACHE": f"{self.home.name}/datasets"}
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the empty answer below says so
            print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process that runs the host's scripts ended:\n{self.errors.read_text()}")
        return int(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.home.cleanup()


_server: _Server | None = None


def _serve() -> None:
    """Answers each line of standard input, a request, with a line, the exit status."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[0:1] = []
    sys.path.append(str(REPOSITORY))
    for module, names in PRELOADED.items():
        loaded = importlib.import_module(module)
        for name in names:
            getattr(loaded, name)
    # Rows that another run has tokenized would come from a cache, and leave the tokenizer in another state.
    importlib.import_module("datasets").disable_caching()
    registry = importlib.import_module("fedbias_plugin.registry")
    for kind in registry.EXTENSIONS.keys() - {"flags"}:  # which are made of what is installed where the run is
        for name in registry.EXTENSIONS[kind]:
            registry.load(kind, name)
    gc.collect()
    gc.freeze()  # each Trainer collects garbage: over the libraries' objects that takes longer than a tiny run
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _child(**json.loads(line))
        print(_wait(child, json.loads(line)["log"]), file=answers, flush=True)


def _wait(child: int, log: str) -> int:
    end = time.monotonic() + TIMEOUT
    done, status = os.waitpid(child, os.WNOHANG)
    while not done:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            with open(log, "a", encoding="utf-8") as stream:
                stream.write(f"\nkilled after {TIMEOUT:.0f} seconds\n")
            end = float("inf")
        time.sleep(0.02)
        done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status)


def _child(folder: str, script: str, flags: list[str], log: str, env: dict[str, str], random_state: int | None) -> None:
    """The run. Never returns: what an interpreter does at its end is done here by hand."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test run in the background ignores
    try:
        _start_generators(random_state)
        _keep_folder_of_wandb()
        os.environ.update(env)
        os.chdir(folder)
        sys.path.insert(0, folder)
        sys.argv = [script, *flags]
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = _exit_status(end.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _keep_folder_of_wandb() -> None:
    """W&B makes a folder for tables when it is imported, here before the fork; the first child to end deletes it."""
    private = sys.modules.get("wandb.sdk.data_types._private")
    if private is not None and hasattr(private, "MEDIA_TMP"):
        os.makedirs(private.MEDIA_TMP.name, exist_ok=True)


def _start_generators(state: int | None) -> None:
    import numpy
    import torch

    torch.set_num_threads(1)
    state = int.from_bytes(os.urandom(4), "little") if state is None else state
    random.seed(state)
    numpy.random.seed(state)
    torch.manual_seed(state)


def _exit_status(code: Any) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    _serve()
