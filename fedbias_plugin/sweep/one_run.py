"""One run of a sweep, as its own process: begun, gone on with, or found done.

``python -m fedbias_plugin.sweep.one_run FLAGS.yaml FOLDER`` can be started again after any interruption.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.logs import log_to_stderr, print_error

PATIENCE = 120.0
"""Seconds that a run waits for the process that had its folder before, which may be writing its last checkpoint."""


def main(arguments: Sequence[str]) -> int:
    """The exit code of ``fedbias run``, 0 for a run that is done."""
    config, folder = arguments
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    from fedbias_plugin.cli.main import main as fedbias
    from fedbias_plugin.federation.checkpoints import CheckpointFolder
    from fedbias_plugin.tracking.jsonl import SUMMARY_FILE

    log_to_stderr()
    try:
        wait_until_free(Path(folder))
    except UserError as error:
        print_error(error)
        return 2
    if (Path(folder) / SUMMARY_FILE).is_file():
        return 0
    if CheckpointFolder(Path(folder)).is_empty:
        return fedbias(["run", "--config", config, "--output_dir", folder])
    return fedbias(["run", "--resume", folder])


def _end_with(parent: int) -> None:
    """Ask this process to stop, as SIGTERM does, when the one that started it is gone (killed, not asked to stop)."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def wait_until_free(folder: Path, patience: float = PATIENCE) -> None:
    """Return when no other process is in ``folder``.

    Raises:
        UserError: one still is after ``patience`` seconds.
    """
    from fedbias_plugin.federation.checkpoints import locked

    end = time.monotonic() + patience
    while folder.is_dir():
        try:
            with locked(folder):
                return
        except UserError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
