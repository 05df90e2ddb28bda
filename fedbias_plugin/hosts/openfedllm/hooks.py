"""What takes the place of the host's functions: each wraps the host's own and goes through one ``AttachedRun``.

They are replaced in the host's modules before its script imports them, so that every way to import gets the plugin's.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import inspect
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import peft

from fedbias_plugin.errors import UserError, first_line
from fedbias_plugin.hosts.builtin.stopping import SIGNALS
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments
from fedbias_plugin.hosts.openfedllm.attached_run import AttachedRun
from fedbias_plugin.hosts.openfedllm.flags import check_arguments, make_output_dir, one_line
from fedbias_plugin.hosts.openfedllm.host_rows import check_conversation, host_template
from fedbias_plugin.hosts.openfedllm.inspection import PACKAGES, names_used
from fedbias_plugin.hosts.openfedllm.loading import on_training_device, seeded_adapter
from fedbias_plugin.hosts.openfedllm.requirements import Requirements
from fedbias_plugin.preflight import check_host_data
from fedbias_plugin.training.schedule import clients_this_round

Function = Callable[..., Any]

_runs: list[AttachedRun] = []
_pinned = False
_inside_host = False


def begin(arguments: AllArguments) -> None:
    """The flags are read: check them, and begin the one run of this process.

    Raises:
        UserError: a flag is wrong, or does not fit the others.
    """
    check_arguments(arguments)
    is_dpo = "get_fed_local_dpo_trainer" in _names_used()
    template = None
    if is_dpo:
        check_conversation(arguments.script)
    else:
        template = host_template(arguments.script)
    make_output_dir(arguments.script)
    _runs[:] = [AttachedRun(arguments, is_dpo=is_dpo, pinned=_pinned, template=template)]


def current_run() -> AttachedRun:
    """The one run of this process.

    Raises:
        SystemExit: the script uses the host's functions before it has read its flags (said on standard error).
    """
    with one_line():
        if not _runs:
            raise UserError("This script trains without having read flags with HfArgumentParser; fedbias unpatch it.")
    return _runs[0]


def get_dataset(host: Function, *args: Any, **kwargs: Any) -> Any:
    """The host's data set, unless a scenario deals the rows."""
    return load_rows(host, *args, **kwargs) if current_run().data.needs_host_rows else None


def load_rows(host: Function, *args: Any, **kwargs: Any) -> Any:
    """What the host loads.

    Raises:
        UserError: it cannot: a missing file, no network, a hub that says no (libraries raise errors of every kind).
    """
    try:
        return host(*args, **kwargs)
    except Exception as error:
        given = vars(current_run().script_args)
        if host.__name__ == "get_dataset" and "dataset_name" in given:
            check_host_data(given["dataset_name"], given.get("local_data_dir"))
        flags = [f"--{name} {given[name]}" for name in ("dataset_name", "local_data_dir") if given.get(name)]
        raise UserError(
            f"{' '.join(flags)}: the host cannot load its data: {first_line(error)}. Give --local_data_dir with a copy "
            "on this machine, or --scenario 3C for the plugin's data."
        ) from error


def process_dataset(host: Function, *args: Any, **kwargs: Any) -> Any:
    """The host's clean-up of its data set, unless a scenario deals the rows (which are read and checked here)."""
    run = current_run()
    if run.data.needs_host_rows:
        return host(*args, **kwargs)
    run.open_session()
    return None


def split_dataset(host: Function, *args: Any, **kwargs: Any) -> list[Any]:
    """Every client's rows: the scenario's, else the host's split."""
    run = current_run()
    if run.data.from_scenario:
        return run.scenario_datasets(inspect.signature(host).bind(*args, **kwargs).arguments["dataset"])
    datasets = run.data.split(host, *args, **kwargs)
    run.open_session()
    run.check_rows()
    return datasets


def get_fed_datasets(host: Function, *args: Any, **kwargs: Any) -> list[Any]:
    """FedLLM-Bench's data sets of all clients, which come split, or of the one that trains alone."""
    run = current_run()
    if run.data.from_scenario:
        if run.data.needs_host_rows:
            raise UserError("This host's data come split by client; give --preference_dataset NAME instead of host.")
        return run.scenario_datasets()
    datasets = run.data.keep(load_rows(host, *args, **kwargs), "give --num_clients as many as its file holds, or fewer")
    run.open_session()
    run.check_rows()
    return datasets


def get_formatting_prompts_func(host: Function, *args: Any, **kwargs: Any) -> Any:
    """Remembers how the host turns rows into texts, and the text before a response."""
    formatting, marker = host(*args, **kwargs)
    current_run().training.formatting, current_run().training.response_marker = formatting, marker
    return formatting, marker


def get_clients_this_round(host: Function, *args: Any, **kwargs: Any) -> list[int]:
    """The host's draw, or ``--schedule_seed``'s; nobody in a round that an earlier process finished."""
    run = current_run()
    fed_args, seed = run.fed_args, run.plugin.schedule_seed
    round_idx = inspect.signature(host).bind(*args, **kwargs).arguments["round"]
    if run.begin_round(round_idx):
        clients: list[int] = []
    elif seed is None:
        clients = host(*args, **kwargs)
    else:
        clients = clients_this_round(fed_args.fed_alg, fed_args.num_clients, fed_args.sample_clients, round_idx, seed)
    run.clients_chosen(clients)
    return clients


def get_dataset_this_round(host: Function, dataset: Any, round: int, *args: Any, **kwargs: Any) -> Any:
    """Tells which client is next, and takes its rows of the round."""
    run = current_run()
    run.client_comes(dataset, round)
    call = inspect.signature(host).bind(dataset, round, *args, **kwargs)
    steps = call.arguments.get("local_step") or run.script_args.max_steps  # local_step: FedLLM-Bench
    rows = run.data.rows_of_round(dataset, round, steps)
    return host(dataset, round, *args, **kwargs) if rows is None else rows


def get_trainer(host: Function, *args: Any, **kwargs: Any) -> Any:
    """The host's trainer of one client, SFT or DPO."""
    return current_run().build_trainer(host, inspect.signature(host).bind(*args, **kwargs))


def global_aggregate(host: Function, *args: Any, **kwargs: Any) -> Any:
    """The host's aggregation, of states that the rule has weighed."""
    run, signature = current_run(), inspect.signature(host)
    try:
        call = signature.bind(*args, **kwargs)
    except TypeError:
        if "script_args" not in signature.parameters:
            raise
        # FedLLM-Bench's main_dpo.py leaves out what its own function takes second.
        call = signature.bind(args[0], run.script_args, *args[1:], **kwargs)
    return run.aggregate(host, call)


def get_peft_model(host: Function, *args: Any, **kwargs: Any) -> Any:
    """peft's, with weights drawn from ``--seed``; a run that the plugin must not change keeps the host's draw."""
    run = current_run()
    make = host if run.plugin.is_idle else seeded_adapter(host, run.script_args.seed)
    return on_training_device(make(*args, **kwargs))


HOOKS: dict[str, Function] = {
    "get_dataset": get_dataset,
    "process_sft_dataset": process_dataset,
    "process_dpo_dataset": process_dataset,
    "get_fed_datasets": get_fed_datasets,
    "get_local_datasets": get_fed_datasets,
    "get_formatting_prompts_func": get_formatting_prompts_func,
    "split_dataset": split_dataset,
    "get_clients_this_round": get_clients_this_round,
    "get_dataset_this_round": get_dataset_this_round,
    "get_fed_local_sft_trainer": get_trainer,
    "get_fed_local_dpo_trainer": get_trainer,
    "global_aggregate": global_aggregate,
}
"""Name of a host's function -> what takes its place."""


def install(*, pinned: bool) -> None:
    """Import the host's packages and replace those functions that the script uses, and peft's ``get_peft_model``.

    Args:
        pinned: whether this is the pinned stack.

    Raises:
        UserError: a function of this host lacks a parameter that the plugin reads, or the host needs a package that is
            not installed.
    """
    global _pinned
    _pinned = pinned
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(f"This host needs the Python module {error.name}, which is not installed.") from error
    requirements, used = Requirements.load(), _names_used()
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in PACKAGES]
    for name, hook in HOOKS.items():
        replaced: dict[int, Function] = {}
        for module in modules:
            host = vars(module).get(name)
            if name in used and inspect.isfunction(host):
                if id(host) not in replaced:
                    requirements.check_parameters(name, host)
                    replaced[id(host)] = _hooked(hook, host)
                setattr(module, name, replaced[id(host)])
    peft.get_peft_model = _hooked(get_peft_model, peft.get_peft_model)
    sys.excepthook = _on_exception
    atexit.register(_on_exit)
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _on_signal)


def _names_used() -> set[str]:
    """What the script that runs uses of the host; without a file of its own, all but DPO's."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    return names_used(Path(script)) if script else HOOKS.keys() - {"get_fed_local_dpo_trainer"}


def _hooked(hook: Function, host: Function) -> Function:
    """``host`` as the script gets it: through ``hook``, unless another function of the host calls it."""

    def unhooked(*args: Any, **kwargs: Any) -> Any:
        with _host_at_work():
            return host(*args, **kwargs)

    functools.update_wrapper(unhooked, host)

    @functools.wraps(host)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        if _inside_host:
            return host(*args, **kwargs)
        with current_run().guarded():
            return hook(unhooked, *args, **kwargs)

    return hooked


@contextmanager
def _host_at_work() -> Iterator[None]:
    global _inside_host
    before, _inside_host = _inside_host, True
    try:
        yield
    finally:
        _inside_host = before


def _on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Mark the run failed; the traceback is shown as ever."""
    for run in _runs:
        run.close(f"{kind.__name__}: {error}")
    _previous_hook(kind, error, trace)


def _on_exit() -> None:
    for run in _runs:
        run.close("the script ended before its last round")
        if "resuming" in vars(run):
            run.resuming.leave()


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Leave in the ordinary way, past :func:`_on_exit`; the last finished round is in its checkpoint."""
    raise SystemExit(128 + number)


_previous_hook = sys.excepthook
