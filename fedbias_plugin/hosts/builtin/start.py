"""A run of the built-in host from flags, whoever wrote them: the command line, a YAML file, or Python."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.configs_folder import RUNS, find_config
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import disk_errors_named
from fedbias_plugin.flags import build, known_keywords, named_as_keywords, read_config
from fedbias_plugin.hosts.builtin.arguments import NOT_HERE, HostArguments
from fedbias_plugin.hosts.builtin.resolve import resolve
from fedbias_plugin.memory import collector_paused
from fedbias_plugin.options import idle_flags, options

logger = logging.getLogger(__name__)

FLAGS = (HostArguments, BiasArguments)


def run(
    *,
    config: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    **flags: Any,
) -> Path:
    """``fedbias run`` from Python: the same loop, names and checks.

    ``run(num_rounds=2, scenario="1B2C", aggregation="bama", output_dir="runs/bama")`` is
    ``fedbias run --num_rounds 2 --scenario 1B2C --aggregation bama --output_dir runs/bama``. Every round is printed;
    the package's log (logger ``fedbias_plugin``) is yours to show.

    Args:
        config: YAML file with the same names; keywords win over it.
        resume: folder of a run that was cut off, which goes on after its last finished round. Its flags are those it
            began with.
        flags: any flag of ``fedbias run --help``; a list stands for values with commas between.

    Returns:
        The output folder: ``metrics.jsonl``, ``summary.json``, ``adapter/`` or ``model/`` and the rest.

    Raises:
        UserError: an unknown name (with the nearest one), a value out of range, flags that contradict each other, data
            or a model that cannot be read; nothing was written.
        Stopped: Ctrl-C or SIGTERM; what was finished is in the checkpoint.
    """
    with named_as_keywords():
        written = known_keywords("run()", flags, FLAGS, NOT_HERE)
        in_file = config_values(config)
    if resume is not None:
        return resume_run(resume, in_file | written, "run()")[0]
    with named_as_keywords():
        arguments = arguments_of(in_file, written, config, "run()")
    return start(*arguments)


def start(host: HostArguments, bias: BiasArguments) -> Path:
    """Check what can be checked without the model's libraries, then hand over to the loop.

    Raises:
        UserError: as :func:`fedbias_plugin.hosts.builtin.loop.run` does; an old Transformers, or several processes.
    """
    check_stack()
    check_one_process()
    with collector_paused():
        from fedbias_plugin.hosts.builtin.loop import run as run_loop

    return run_loop(host, bias)


def resume_run(
    folder: str | os.PathLike[str], written: Mapping[str, Any], where: str, run: Callable[..., Path] | None = None
) -> tuple[Path, bool]:
    """Find the last finished round in ``folder`` and go on after it, with the flags that the run began with.

    Args:
        folder: of a run of the built-in host.
        written: flags that are given again; they must say the same, unless they move no number.
        where: they were written.
        run: goes on with the two argument objects and the checkpoint; the built-in loop where it is not given.

    Returns:
        The folder, and whether there was anything to go on with: False for a finished run.

    Raises:
        UserError: no such folder, a changed flag, or anything given beside a finished run.
    """
    output, shown = Path(folder), os.fspath(folder)
    if not output.is_dir():
        raise UserError(f"--resume {shown}: {'that is a file' if output.exists() else 'there is no such folder'}.")
    check_stack()
    check_one_process()
    with collector_paused():
        from fedbias_plugin.federation.checkpoints import changed_arguments, find_checkpoint, locked
        from fedbias_plugin.hosts.builtin.loop import run as run_loop

    with disk_errors_named(output), locked(output):
        checkpoint = find_checkpoint(output, "--resume", "builtin")
        if checkpoint is None:
            changed = sorted(written.keys() - {"output_dir"})
            if changed:
                raise UserError(
                    f"{shown} is finished, and a finished run cannot be extended or changed (the learning rate "
                    f"follows --num_rounds); drop --{', --'.join(changed)}, or begin a new run."
                )
            return output, False
        if Path(written.get("output_dir", shown)).resolve() != output.resolve():
            raise UserError(f"--resume {shown} goes on in that folder; drop --output_dir.")
        layers = [("the checkpoint", checkpoint.arguments), (where, {**written, "output_dir": shown})]
        host, bias = build(HostArguments, layers), build(BiasArguments, layers)
        given = {name: value for name, value in {**vars(host), **vars(bias)}.items() if name in written}
        changed = changed_arguments(checkpoint.arguments, given)
        if changed:
            raise UserError(
                f"A run goes on as it began. Changed: {', '.join(changed)}. Drop what has changed, or begin a new run."
            )
        return (run or run_loop)(host, bias, checkpoint), True


def arguments_of(
    in_file: Mapping[str, Any],
    written: Mapping[str, Any],
    config: str | os.PathLike[str] | None = None,
    where: str = "command line",
) -> tuple[HostArguments, BiasArguments]:
    """The two argument objects: what is ``written`` over ``config`` over what the bundled model recommends.

    Args:
        in_file: what ``config`` holds.
        written: flag -> value, on the command line or as keywords.
        config: the YAML file, for errors.
        where: ``written`` was, for errors.

    Raises:
        UserError: a value of the wrong type or out of range, or flags that contradict each other.
    """
    host, bias, recommended = resolve([(f"--config {config}", in_file), (where, written)])
    if recommended:
        listed = ", ".join(f"{name}={value}" for name, value in recommended.items())
        logger.info("model tiny: recommended settings for flags not given: %s", listed)
    given, values = in_file.keys() | written.keys(), {**vars(host), **vars(bias)}
    for name, needed in idle_flags(options(*FLAGS), values, given):
        logger.warning("--%s has no effect %s.", name, needed)
    return host, bias


def config_values(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What a file of flags holds, or one of ours by name; empty without one."""
    return read_config(str(find_config(RUNS, os.fspath(path), "--config")), FLAGS, NOT_HERE) if path else {}


def check_stack() -> None:
    """Refuse an old Transformers before it fails in the middle of something.

    Raises:
        UserError: naming the version found and the line that mends it.
    """
    version = importlib.metadata.version("transformers")
    if int(version.split(".")[0]) < 5:
        raise UserError(
            f"fedbias run needs transformers 5 or newer, and {version} is installed: pip install -U 'transformers>=5'."
        )


def check_one_process() -> None:
    """Refuse a launcher that started several processes: each would train on a part of every client's rows.

    Raises:
        UserError: saying what several processes can do.
    """
    from fedbias_plugin.scoring.processes import launched

    if launched() > 1:
        raise UserError(
            f"fedbias run trains in one process, and a launcher started {launched()}. Several processes can share the "
            "scoring of one model: accelerate launch -m fedbias_plugin evaluate ..."
        )
