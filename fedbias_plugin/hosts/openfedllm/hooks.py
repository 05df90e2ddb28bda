"""What happens when the script calls a function of the host: one function here for each, in the script's order.

:func:`install` puts them in front of the host's, in the host's own modules; every call goes to the one ``AttachedRun``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import inspect
import signal
import sys
import threading
from collections.abc import Callable
from inspect import BoundArguments
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import peft

from fedbias_plugin.errors import UserError, first_line
from fedbias_plugin.hosts.builtin.stopping import SIGNALS
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments
from fedbias_plugin.hosts.openfedllm.attached_run import AttachedRun
from fedbias_plugin.hosts.openfedllm.flags import check_arguments, make_output_dir, one_line
from fedbias_plugin.hosts.openfedllm.host_rows import find_conversation, host_template
from fedbias_plugin.hosts.openfedllm.inspection import PACKAGES, Requirements, names_used
from fedbias_plugin.hosts.openfedllm.peft_bridges import drawn_from, on_training_device
from fedbias_plugin.preflight import check_host_data
from fedbias_plugin.training.schedule import clients_this_round

Function = Callable[..., Any]


class HostCall:
    """A call of a function of the host by the script: ``arguments`` may be changed before it is made.

    Attributes:
        name: of the function.
        arguments: by name.
    """

    def __init__(self, function: Callable[..., Any], bound: BoundArguments) -> None:
        self.name, self.arguments = function.__name__, bound.arguments
        self._function, self._bound = function, bound

    def __call__(self) -> Any:
        return self._function(*self._bound.args, **self._bound.kwargs)


Hook = Callable[[AttachedRun, HostCall], Any]
"""Takes the run and the script's call: what it returns, the script gets."""

_runs: list[AttachedRun] = []
_pinned = False
_inside_host = False


def get_dataset(run: AttachedRun, call: HostCall) -> Any:
    """The host's data set, unless a scenario deals the rows."""
    return load_rows(run, call) if run.data.needs_host_rows else None


def load_rows(run: AttachedRun, call: HostCall) -> Any:
    """What the host loads, or one line on why it cannot: a missing file, no network, a hub that says no."""
    try:
        return call()
    except Exception as error:  # libraries raise errors of every kind
        given = vars(run.script_args)
        if call.name == "get_dataset" and "dataset_name" in given:
            check_host_data(given["dataset_name"], given.get("local_data_dir"))
        flags = [f"--{name} {given[name]}" for name in ("dataset_name", "local_data_dir") if given.get(name)]
        raise UserError(
            f"{' '.join(flags)}: the host cannot load its data: {first_line(error)}. Give --local_data_dir with a copy "
            "on this machine, or --scenario 3C for the plugin's data."
        ) from error


def process_dataset(run: AttachedRun, call: HostCall) -> Any:
    """The host's clean-up of its data set, unless a scenario deals the rows (which are read and checked here)."""
    if run.data.needs_host_rows:
        return call()
    run.open_session()
    return None


def split_dataset(run: AttachedRun, call: HostCall) -> list[Any]:
    """Every client's rows: the scenario's, else the host's split."""
    if run.data.from_scenario:
        run.data.deal(run.open_session(call.arguments["dataset"]).client_datasets)
    else:
        run.data.split(call)
        run.open_session()
    run.check_rows()
    return run.data.datasets


def get_fed_datasets(run: AttachedRun, call: HostCall) -> list[Any]:
    """FedLLM-Bench's data sets of all clients, which come split, or of the one that trains alone."""
    if not run.data.from_scenario:
        run.data.keep(load_rows(run, call), "give --num_clients as many as its file holds, or fewer")
        run.open_session()
    elif run.data.needs_host_rows:
        raise UserError("This host's data come split by client; give --preference_dataset NAME instead of host.")
    else:
        run.data.deal(run.open_session().client_datasets)
    run.check_rows()
    return run.data.datasets


def get_formatting_prompts_func(run: AttachedRun, call: HostCall) -> Any:
    """Remembers how the host turns rows into texts, and the text before a response."""
    run.training.formatting, run.training.response_marker = made = call()
    return made


def get_clients_this_round(run: AttachedRun, call: HostCall) -> list[int]:
    """The host's draw, or ``--schedule_seed``'s; nobody in a round that an earlier process finished."""
    fed_args, seed, round_idx = run.fed_args, run.plugin.schedule_seed, call.arguments["round"]
    run.open_session()
    clients: list[int] = []
    if not run.resuming.begin_round(round_idx):
        draw = (fed_args.fed_alg, fed_args.num_clients, fed_args.sample_clients, round_idx)
        clients = call() if seed is None else clients_this_round(*draw, seed)
    run.begin_round(round_idx, clients)
    return clients


def get_dataset_this_round(run: AttachedRun, call: HostCall) -> Any:
    """Tells which client is next, and takes its rows of the round."""
    dataset, round_idx = call.arguments["dataset"], call.arguments["round"]
    run.client_comes(dataset, round_idx)
    steps = call.arguments.get("local_step") or run.script_args.max_steps  # local_step: FedLLM-Bench
    rows = run.data.rows_of_round(dataset, round_idx, steps)
    return call() if rows is None else rows


def get_peft_model(run: AttachedRun, call: HostCall) -> Any:
    """peft's, with weights drawn from ``--seed``; a run that the plugin must not change keeps the host's draw."""
    with contextlib.nullcontext() if run.plugin.is_idle else drawn_from(run.script_args.seed):
        return on_training_device(call())


HOOKS: dict[str, Hook] = {
    "get_dataset": get_dataset,
    "process_sft_dataset": process_dataset,
    "process_dpo_dataset": process_dataset,
    "get_fed_datasets": get_fed_datasets,
    "get_local_datasets": get_fed_datasets,
    "get_formatting_prompts_func": get_formatting_prompts_func,
    "split_dataset": split_dataset,
    "get_clients_this_round": get_clients_this_round,
    "get_dataset_this_round": get_dataset_this_round,
    "get_fed_local_sft_trainer": AttachedRun.build_trainer,
    "get_fed_local_dpo_trainer": AttachedRun.build_trainer,
    "global_aggregate": AttachedRun.aggregate,
}
"""Name of a host's function -> what takes its place."""


def install(*, pinned: bool) -> None:
    """Import the host's packages and replace those functions that the script uses, and peft's ``get_peft_model``.

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


def begin(arguments: AllArguments) -> None:
    """The flags are read: check them, and begin the one run of this process."""
    check_arguments(arguments)
    is_dpo = "get_fed_local_dpo_trainer" in _names_used()
    template = None
    if is_dpo:
        find_conversation(arguments.script.template)  # refuses one that the host's DPO script would not find
    else:
        template = host_template(arguments.script)
    make_output_dir(arguments.script)
    _runs[:] = [AttachedRun(arguments, is_dpo=is_dpo, pinned=_pinned, template=template)]


def _names_used() -> set[str]:
    """What the script that runs uses of the host; without a file of its own, all but DPO's."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    return names_used(Path(script)) if script else HOOKS.keys() - {"get_fed_local_dpo_trainer"}


def _hooked(hook: Hook, host: Function) -> Function:
    """``host`` as the script gets it: through ``hook``, unless another function of the host calls it.

    It ends the script with one line where the script uses it before it has read its flags.
    """

    signature = inspect.signature(host)

    @functools.wraps(host)
    def unhooked(*args: Any, **kwargs: Any) -> Any:
        global _inside_host
        before, _inside_host = _inside_host, True
        try:
            return host(*args, **kwargs)
        finally:
            _inside_host = before

    @functools.wraps(host)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        if _inside_host:
            return host(*args, **kwargs)
        with one_line():
            if not _runs:
                raise UserError(
                    "This script trains without having read flags with HfArgumentParser; fedbias unpatch it."
                )
        run = _runs[0]
        with run.guarded():
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                if "script_args" not in signature.parameters:
                    raise
                # FedLLM-Bench's main_dpo.py leaves out what its own global_aggregate takes second.
                bound = signature.bind(args[0], run.script_args, *args[1:], **kwargs)
            return hook(run, HostCall(unhooked, bound))

    return hooked


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
