"""The embedded federated loop: OpenFedLLM's rounds without a checkout, on the current stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.partition import ClientDataset
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.checkpoints import Checkpoint, locked
from fedbias_plugin.federation.session import BiasSession, HostRun
from fedbias_plugin.files import disk_errors_named
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.hosts.builtin.federation import Federation
from fedbias_plugin.hosts.builtin.output_folder import check_output_dir
from fedbias_plugin.hosts.builtin.stopping import StoppableProgress, StopSignals
from fedbias_plugin.preflight import check_bitsandbytes, check_model, model_path
from fedbias_plugin.progress import build_progress
from fedbias_plugin.registry import build
from fedbias_plugin.tasks.base import Task
from fedbias_plugin.training.determinism import make_deterministic
from fedbias_plugin.training.models import load_tokenizer


def run(
    host: HostArguments,
    bias: BiasArguments,
    resumed: Checkpoint | None = None,
    federation: Callable[..., Federation] = Federation,
    elsewhere: Mapping[int, ClientDataset] | None = None,
) -> Path:
    """Train ``host.num_rounds`` rounds across poisoned clients; everything lands in ``host.output_dir``, returned.

    All data and every client's rows are read and checked before the model's weights are, and these before the output
    folder is made. A run that was cut off in that folder goes on where it was ``resumed``. ``federation`` takes what
    :class:`Federation` takes: another one trains its clients elsewhere, where some may hold rows of their own.

    Raises:
        UserError: input that the user can mend; nothing was written.
        Stopped: a signal came; what was finished is in the checkpoint.
    """
    output = Path(host.output_dir) if resumed else check_output_dir(host.output_dir)
    if bias.scenario == "none":
        raise UserError("--scenario none leaves the built-in host without data; use 3C for clean clients only.")
    check_model(host.model_name_or_path)
    check_bitsandbytes(host.load_in_8bit, host.load_in_4bit)
    if bias.deterministic:
        make_deterministic()
    task: Task = build("task", bias.task, host, bias)
    tokenizer = load_tokenizer(model_path(host.model_name_or_path), trust_remote_code=host.trust_remote_code)
    task.prepare(tokenizer)
    config = dataclasses.asdict(host) | dataclasses.asdict(bias)
    about = HostRun(output, config=config, prompt=task.prompt, task=task, **host.of_the_loop)
    with build_progress() as bars, StopSignals() as stop:
        progress = StoppableProgress(bars, stop)
        session = BiasSession(bias, about, progress, elsewhere=elsewhere)
        try:
            rounds = federation(host, bias, task, tokenizer, session, progress, stop)
            with disk_errors_named(output), nullcontext() if resumed else locked(output):
                rounds.run(resumed)
        except BaseException as error:
            session.close(failure=f"{type(error).__name__}: {error}")
            raise
    return output
