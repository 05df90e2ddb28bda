"""``fedbias sweep EXPERIMENT...``: every run of one or several experiments, on one model."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.cli.run import command_line_values
from fedbias_plugin.configs_folder import config_names, find_config
from fedbias_plugin.errors import Stopped, UserError, printable
from fedbias_plugin.flags import add_flags, build
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.hosts.builtin.start import check_one_process, check_stack
from fedbias_plugin.options import options
from fedbias_plugin.preflight import check_bitsandbytes, check_model
from fedbias_plugin.registry import load, names
from fedbias_plugin.sweep.base import Launcher
from fedbias_plugin.sweep.configs import OWN, load_experiment, load_model
from fedbias_plugin.terminal import say

if TYPE_CHECKING:
    from fedbias_plugin.sweep.plan import PlannedRun


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``sweep``; every flag of ``fedbias run`` is one of its own, for all runs."""
    parser = commands.add_parser(
        "sweep",
        help="all runs of an experiment: what is done is skipped, what was cut off goes on",
        description="All runs of one or several experiments on one model. Flags of `fedbias run` given here hold "
        "for every run and win over the files.",
    )
    listed = {kind: ", ".join(config_names(kind)) for kind in ("experiments", "models")}
    parser.add_argument(
        "experiments", nargs="+", metavar="EXPERIMENT", help=f"YAML file, or one of ours: {listed['experiments']}"
    )
    parser.add_argument(
        "--model", default="tiny", help=f"YAML file, or one of ours: {listed['models']} (default: tiny)"
    )
    parser.add_argument("--output", help="folder of the runs (default: runs/MODEL); experiments share runs in it")
    parser.add_argument("--seeds", help="instead of the experiments' own, such as 2023,2024,2025")
    parser.add_argument("--dry_run", action="store_true", help="show the plan and start nothing")
    launchers = names("launcher")
    parser.add_argument("--launcher", default="local", choices=launchers, help="where runs go (default: local)")
    add_flags(parser, Launcher)
    for name in launchers:
        add_flags(parser, load("launcher", name), without=options(Launcher))
    add_flags(parser, HostArguments, BiasArguments, without=OWN, shows_defaults=False)
    parser.set_defaults(main=main)


def main(parsed: argparse.Namespace) -> int:
    """Plan, check, show, carry out; 1 when a run failed."""
    from fedbias_plugin.federation.checkpoints import locked
    from fedbias_plugin.files import disk_errors_named
    from fedbias_plugin.sweep.execution import Execution
    from fedbias_plugin.sweep.folder import SweepFolder
    from fedbias_plugin.sweep.plan import plan_runs
    from fedbias_plugin.sweep.preparation import check_data, memory_lines

    launcher = build(load("launcher", parsed.launcher), [("command line", vars(parsed))])
    model = load_model(find_config("models", parsed.model, "--model"))
    given = dict.fromkeys(parsed.experiments)
    experiments = [load_experiment(find_config("experiments", name, "experiment")) for name in given]
    planned = plan_runs(experiments, model, command_line_values(parsed), _seeds(parsed.seeds))
    check_stack()
    check_one_process()
    _check_models(planned, run_here=launcher.runs_here and not parsed.dry_run)
    folder = SweepFolder(Path(parsed.output or Path("runs") / model.name))
    data = check_data(planned)
    folder.check(model, data, planned)
    execution = Execution(folder, planned, launcher)
    head = f"{', '.join(one.title for one in experiments)}: {model.title} -> {folder.path}"
    say(printable("\n".join([head, *memory_lines(model, planned), *execution.plan_lines()])))
    if parsed.dry_run:
        return 0
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder.path} cannot be made: {error.strerror}.") from None
    with disk_errors_named(folder.path), locked(folder.path):
        folder.write(model, data, experiments, planned)
        try:
            execution.run()
        except (KeyboardInterrupt, Stopped):
            say(f"{len(execution.done)} of {len(planned)} runs are done; the same command goes on.")
            raise
    return _say_end(execution.failures, folder.path)


def _check_models(planned: Sequence[PlannedRun], *, run_here: bool) -> None:
    """Refuse a model that is not where it should be; what only the hub or a device can tell, if the runs are here."""
    read = ("model_name_or_path", "load_in_8bit", "load_in_4bit")
    for model, in_8bit, in_4bit in sorted({tuple(run.settings[name] for name in read) for run in planned}):
        check_model(model, asks_hub=run_here)
        if run_here:
            check_bitsandbytes(in_8bit, in_4bit)


def _say_end(failures: dict[str, str], folder: Path) -> int:
    if any(folder.glob("runs/*/wandb/offline-run-*")):
        runs = f"{shlex.quote(str(folder))}/runs/*/wandb/offline-run-*"
        say(printable(f"W&B recorded offline. To upload: wandb sync {runs}"))
    if not failures:
        say(printable(f"all runs are done. Tables and figures: fedbias report {folder}"))
        return 0
    say(f"{len(failures)} of the runs failed; the same command tries them again:")
    for name, why in failures.items():
        say(printable(f"  {name}: {why}"))
    return 1


def _seeds(text: str | None) -> Sequence[int] | None:
    """``--seeds`` as numbers.

    Raises:
        UserError: they are none.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: give whole numbers, such as 2023,2024,2025.") from None
