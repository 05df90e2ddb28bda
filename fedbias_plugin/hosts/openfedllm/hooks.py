"""Names that take the place of the host's own in a patched script: ``from ...hooks import *``.

Each wraps the host's function of the same name, found where the script itself imported it from, and goes through
:class:`~fedbias_plugin.hosts.openfedllm.attached_run.AttachedRun`. Only names that the host has are exported.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.builtin.stopping import SIGNALS
from fedbias_plugin.hosts.openfedllm.attached_run import AttachedRun
from fedbias_plugin.hosts.openfedllm.compat import STACK
from fedbias_plugin.hosts.openfedllm.loading import AutoModelForCausalLM, on_training_device, seeded_adapter
from fedbias_plugin.logs import print_error
from fedbias_plugin.training.schedule import clients_this_round

Function = Callable[..., Any]

_runs: list[AttachedRun] = []


def current_run() -> AttachedRun:
    """The one run of this process, made when the host's arguments are there."""
    if not _runs:
        script_args, fed_args = importlib.import_module("config").get_config()[:2]
        is_dpo = "dpo" in os.path.basename(sys.argv[0])
        _runs.append(AttachedRun(script_args, fed_args, is_dpo=is_dpo, pinned=STACK == "pinned"))
    return _runs[0]


def get_dataset(host: Function, *args: Any, **kwargs: Any) -> Any:
    """The host's data set, unless a scenario deals the rows."""
    return host(*args, **kwargs) if current_run().data.needs_host_rows else None


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
    return datasets


def get_fed_datasets(host: Function, *args: Any, **kwargs: Any) -> list[Any]:
    """FedLLM-Bench's data sets of all clients, which come split, or of the one that trains alone."""
    run = current_run()
    if run.data.from_scenario:
        if run.data.needs_host_rows:
            raise UserError("This host's data come split by client; give --preference_dataset NAME instead of host.")
        return run.scenario_datasets()
    datasets = run.data.keep(host(*args, **kwargs), "give --num_clients as many as its file holds, or fewer")
    run.open_session()
    return datasets


def get_formatting_prompts_func(host: Function, *args: Any, **kwargs: Any) -> Any:
    """Remembers how the host turns rows into texts, and the text before a response."""
    formatting, marker = host(*args, **kwargs)
    current_run().training.formatting, current_run().training.response_marker = formatting, marker
    return formatting, marker


def get_clients_this_round(host: Function, *args: Any, **kwargs: Any) -> list[int]:
    """The host's draw, or ``--schedule_seed``'s; nobody in a round that an earlier process finished."""
    run = current_run()
    fed_args, seed = run.fed_args, run.fed_args.schedule_seed
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
    make = host if run.fed_args.is_idle else seeded_adapter(host, run.script_args.seed)
    return on_training_device(make(*args, **kwargs))


HOOKS: dict[str, tuple[str, Function]] = {
    "get_dataset": ("utils", get_dataset),
    "process_sft_dataset": ("utils", process_dataset),
    "process_dpo_dataset": ("utils", process_dataset),
    "get_fed_datasets": ("utils", get_fed_datasets),
    "get_local_datasets": ("utils", get_fed_datasets),
    "get_formatting_prompts_func": ("utils", get_formatting_prompts_func),
    "split_dataset": ("federated_learning", split_dataset),
    "get_clients_this_round": ("federated_learning", get_clients_this_round),
    "get_dataset_this_round": ("federated_learning", get_dataset_this_round),
    "get_fed_local_sft_trainer": ("federated_learning", get_trainer),
    "get_fed_local_dpo_trainer": ("federated_learning", get_trainer),
    "global_aggregate": ("federated_learning", global_aggregate),
    "get_peft_model": ("peft", get_peft_model),
}
"""Name in the script -> the host's module that has it, and what takes its place."""


PARAMETERS: dict[Function, set[str]] = {
    split_dataset: {"dataset"},
    get_clients_this_round: {"round"},
    get_trainer: {"fed_args", "model", "tokenizer", "training_args", "local_dataset"},
    global_aggregate: {"global_dict", "local_dict_list", "sample_num_list", "clients_this_round", "round_idx"},
}
"""What a hook reads from a call of the host's function, by the parameter's name."""


def _exported() -> dict[str, Any]:
    """Name -> what the script gets.

    Raises:
        UserError: a function of this host lacks a parameter that the hook needs.
    """
    names: dict[str, Any] = {}
    for name, (module, hook) in HOOKS.items():
        host = getattr(importlib.import_module(module), name, None)
        if host is not None:
            missing = PARAMETERS.get(hook, set()) - set(inspect.signature(host).parameters)
            if missing:
                raise UserError(
                    f"{module}.{name} of this host has no parameter {', '.join(sorted(missing))}: it differs too "
                    "much from OpenFedLLM's for the plugin. Run fedbias unpatch."
                )
            names[name] = functools.wraps(host)(functools.partial(hook, host))
    if STACK == "current":
        names["AutoModelForCausalLM"] = AutoModelForCausalLM
    return names


def _on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Mark the run failed; wrong input is one line, anything else a traceback as ever."""
    for run in _runs:
        run.close(f"{kind.__name__}: {error}")
    if isinstance(error, UserError):
        print_error(error)
    else:
        _previous_hook(kind, error, trace)


def _on_exit() -> None:
    for run in _runs:
        run.close("the script ended before its last round")
        run.resuming.leave()


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Leave in the ordinary way, past :func:`_on_exit`; the last finished round is in its checkpoint."""
    raise SystemExit(128 + number)


_previous_hook = sys.excepthook
sys.excepthook = _on_exception
atexit.register(_on_exit)
if threading.current_thread() is threading.main_thread():
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _on_signal)

_names = _exported()
globals().update(_names)
__all__ = list(_names)
