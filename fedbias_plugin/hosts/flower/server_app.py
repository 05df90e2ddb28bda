"""The ServerApp: the built-in host's rounds, with the nodes of the federation as clients.

Its flags come as the run's configuration, under the names of ``fedbias run``; an empty text stands for "not given".
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import Stopped, UserError
from fedbias_plugin.federation.checkpoints import Checkpoint
from fedbias_plugin.flags import build, check_names
from fedbias_plugin.hosts.builtin.arguments import NOT_HERE, HostArguments
from fedbias_plugin.hosts.builtin.start import FLAGS, arguments_of, config_values, resume_run
from fedbias_plugin.hosts.flower.arguments import CONFIG, RESUME, FlowerArguments
from fedbias_plugin.logs import log_to_stderr, print_error, quiet_libraries

WHERE = "run config"
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; wrong input, or a signal, ends the run as failed, with its sentence in the log.

    Raises:
        UserError: as :func:`serve`; Flower tells the SuperLink at once where it gets an exception.
        RuntimeError: a signal came.
    """
    log_to_stderr()
    quiet_libraries()
    try:
        serve(grid, context.run_config)
    except UserError as error:
        print_error(error)
        _hide_traceback()
        raise
    except Stopped as stopped:
        _hide_traceback()
        raise RuntimeError(f"stopped by {stopped}") from None


def _hide_traceback() -> None:
    logging.getLogger("flwr").setLevel(logging.CRITICAL)


def serve(grid: Grid, run_config: Mapping[str, Any]) -> None:
    """Train on the nodes behind ``grid`` as ``run_config`` says: the flags of ``fedbias run``, of
    :class:`FlowerArguments`, ``config`` (a file of flags) and ``resume`` (a run's folder, with no other flag).

    Raises:
        UserError: as ``fedbias run``; or nodes are missing, or do not fit.
        Stopped: a signal came.
    """
    given = {name: value for name, value in run_config.items() if value != ""}
    resume, config = given.pop(RESUME, None), given.pop(CONFIG, None)
    check_names(given, (*FLAGS, FlowerArguments), NOT_HERE, WHERE)
    flower = build(FlowerArguments, [(WHERE, given)])
    written = {name: value for name, value in given.items() if name not in vars(flower)}
    in_file = config_values(config)
    runs = functools.partial(_run, grid=grid, flower=flower)
    if resume is not None:
        resume_run(str(resume), in_file | written, WHERE, run=runs)
    else:
        runs(*arguments_of(in_file, written, config, WHERE))


def _run(
    host: HostArguments, bias: BiasArguments, resumed: Checkpoint | None = None, *, grid: Grid, flower: FlowerArguments
) -> Any:
    """The built-in loop over the nodes: those are asked for their rows first, as some may bring their own."""
    from fedbias_plugin.hosts.builtin.loop import run
    from fedbias_plugin.hosts.builtin.output_folder import check_output_dir
    from fedbias_plugin.hosts.flower.federation import RemoteFederation, check_can_be_sent
    from fedbias_plugin.hosts.flower.fleet import Fleet, own_datasets

    logging.getLogger("flwr").setLevel(logging.WARNING)
    if resumed is None:
        check_output_dir(host.output_dir)
    check_can_be_sent(host, bias)
    fleet = Fleet(grid, vars(host) | vars(bias), flower)
    everybody = range(host.num_clients)
    fleet.gather(everybody, min(flower.min_clients, host.num_clients))
    federation = functools.partial(RemoteFederation, fleet=fleet, arguments=flower)
    return run(host, bias, resumed, federation, own_datasets(fleet.facts()))
