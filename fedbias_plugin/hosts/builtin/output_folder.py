"""Whether a run may write into its output folder."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import suppress
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.checkpoints import CHECKPOINTS, LOCK, CheckpointFolder, locked


def resume_line(output: Path) -> str:
    """The command that goes on with a run that was cut off."""
    return f"fedbias run --resume {shlex.quote(str(output))}"


def check_output_dir(path: str) -> Path:
    """``path`` as a Path that is free to be written.

    Raises:
        UserError: it holds another run, is a file, or its parent cannot be written.
    """
    output = Path(path)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output_dir {path} is a file; give a folder.")
    if not CheckpointFolder(output).is_empty:
        with suppress(OSError), locked(output):
            pass  # raises where that run is still going on
    check_is_free(output)
    nearest = next(parent for parent in (output, *output.absolute().parents) if parent.exists())
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()  # permissions alone say too little, above all to root
    except OSError as error:
        raise UserError(f"--output_dir {path} cannot be made: {nearest} takes no files ({error.strerror}).") from None
    return output


def check_is_free(output: Path) -> None:
    """Raise UserError where ``output`` holds another run; what one left that died before it began does not count."""
    if not CheckpointFolder(output).is_empty:
        raise UserError(
            f"--output_dir {output} holds a run that was cut off. To go on with it: {resume_line(output)}; else give a "
            "new folder."
        )
    found = sorted(entry.name for entry in output.iterdir()) if output.is_dir() else []
    if set(found) - {LOCK, CHECKPOINTS}:  # these are left where a run died before it began
        named = next(name for name in found if name not in (LOCK, CHECKPOINTS))
        raise UserError(
            f"--output_dir {output} holds {named} already; give a new folder, so that no run overwrites another."
        )
