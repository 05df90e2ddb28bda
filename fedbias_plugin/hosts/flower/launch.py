"""``fedbias flower run``: hand the app to a SuperLink, show its log, and tell how it ended."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from fedbias_plugin.errors import Stopped, UserError
from fedbias_plugin.flags import build
from fedbias_plugin.hosts.builtin.resolve import resolve
from fedbias_plugin.hosts.builtin.stopping import StopSignals
from fedbias_plugin.hosts.flower.app_folder import make_app_folder
from fedbias_plugin.hosts.flower.arguments import FlowerArguments
from fedbias_plugin.hosts.flower.embedded import NAME, EmbeddedFederation, end_groups, flower_environment
from fedbias_plugin.terminal import say
from fedbias_plugin.tracking.jsonl import SUMMARY_FILE

logger = logging.getLogger(__name__)


def run_embedded(given: Mapping[str, Any], supernodes: int | None) -> int:
    """Run on this machine; 0 where the run finished.

    Raises:
        UserError: a flag is wrong, Flower's processes cannot be started, or the run did not finish.
        Stopped: a signal came; what was finished is in the checkpoint.
    """
    from fedbias_plugin.federation.checkpoints import CheckpointFolder

    if supernodes is not None and supernodes < 1:
        raise UserError(f"--supernodes must be at least 1, got {supernodes}.")
    values = dict(given)
    if "resume" in values:
        output = Path(values["resume"])
        if (output / SUMMARY_FILE).is_file():
            CheckpointFolder(output).delete()  # the run may have died in its last step
            say(f"{output} is finished: there is nothing to go on with.")
            return 0
        clients = int(run_arguments(output)["num_clients"])
    else:
        build(FlowerArguments, [("command line", values)])
        host, _, _ = resolve([("command line", values)])
        from fedbias_plugin.hosts.builtin.output_folder import check_output_dir

        output = check_output_dir(os.path.abspath(host.output_dir))
        values["output_dir"], clients = str(output), host.num_clients
    count = min(supernodes or clients, clients)
    try:
        with (
            StopSignals("the run stops; once more stops it at once") as stop,
            EmbeddedFederation(count, gpus()) as near,
        ):

            def attend() -> None:
                stop.check()
                near.attend()

            submit(NAME, values, near.environment, attend)
    except BaseException:
        if not CheckpointFolder(output).is_empty:
            logger.warning("What is finished is kept. To go on: fedbias flower run --resume %s", quote(str(output)))
        raise
    say(f"finished: {output} holds metrics.jsonl, summary.json and the model")
    return 0


def run_on(name: str, given: Mapping[str, Any]) -> int:
    """Run on the federation behind a SuperLink connection; 0 where the run finished."""
    values = dict(given)
    if "resume" not in values:
        build(FlowerArguments, [("command line", values)])
        resolve([("command line", values)])
    with StopSignals("the run is told to stop; once more leaves it to itself") as stop:
        submit(name, values, flower_environment(), stop.check)
    return 0


def submit(name: str, given: Mapping[str, Any], environment: Mapping[str, str], attend: Callable[[], object]) -> None:
    """``flwr run`` with the app, its log streamed until the run has ended.

    Args:
        name: of the SuperLink connection.
        given: the run's configuration.
        environment: of Flower's commands.
        attend: called while the run goes on; what it raises ends the run.

    Raises:
        UserError: Flower does not take the run, or does not say that it is completed.
    """

    def flwr(*words: str, **more: Any) -> str:
        return attended(["flwr", *words], environment, attend, **more)

    with tempfile.TemporaryDirectory(prefix="fedbias-flower-app-") as folder:
        app = Path(folder) / "fedbias-app"
        make_app_folder(app, given)
        said = flwr("run", str(app), name, "--format", "json", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        run_id = str(json.loads(said[said.index("{") :])["run-id"])
    except (ValueError, KeyError):
        raise UserError(f"Flower did not take the run: {said.strip()[-800:]}") from None
    try:
        status = "running"
        while status and not status.startswith("finished"):  # a connection may be lost before that
            flwr("log", run_id, name, "--stream")
            attend()
            status = status_in(flwr("list", name, "--run-id", run_id, "--format", "json", stdout=subprocess.PIPE))
    except Stopped:
        if name != NAME:  # one on this machine gets the signal itself, and has time to keep what is finished
            subprocess.run(["flwr", "stop", run_id, name], env={**environment}, capture_output=True, check=False)
        raise
    if status != "finished:completed":
        raise UserError(f"The run did not finish; Flower says {status or 'nothing'} of it. The log above says why.")


def attended(command: Sequence[str], environment: Mapping[str, str], attend: Callable[[], object], **more: Any) -> str:
    """What ``command`` writes, if it is piped; ``attend`` is called while it runs, and what that raises ends it.

    It has a session of its own: Ctrl-C is for this process.
    """
    process = subprocess.Popen(command, env={**environment}, text=True, start_new_session=True, **more)
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=0.2)[0] or ""
            attend()
    except BaseException:
        end_groups([process])
        raise


def status_in(listed: str) -> str:
    """The status of the run that ``flwr list --format json`` lists; nothing where it lists none.

    >>> status_in('{"success": true, "runs": [{"run-id": "1", "status": "finished:failed"}]}')
    'finished:failed'
    """
    try:
        return str(json.loads(listed)["runs"][0]["status"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""


def run_arguments(output: Path) -> dict[str, Any]:
    """The flags of a run that was cut off, from its newest checkpoint.

    Raises:
        UserError: there is none.
    """
    from fedbias_plugin.federation.checkpoints import CheckpointFolder

    checkpoint = CheckpointFolder(output).newest() if output.is_dir() else None
    if checkpoint is None:
        raise UserError(f"--resume {output}: there is no checkpoint in that folder.")
    return dict(checkpoint.arguments)


def gpus() -> int:
    """GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()
