"""From experiments, a model and the command line to single runs, each with a name and every flag."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import TINY
from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.flags import FALSE, build
from fedbias_plugin.hosts.builtin.resolve import defaults, resolve
from fedbias_plugin.known_flags import all_options
from fedbias_plugin.sweep.configs import CENTRALISED, Experiment, ModelConfig, check_flag, check_seeds

IN_EVERY_NAME = ("fed_alg", "scenario", "aggregation")
MOST_RUNS = 10_000
LONGEST_NAME = 120
EITHER_OR = {"max_steps": "local_epochs", "local_epochs": "max_steps"}
"""Two ways to say how long a client trains; the one that is written later counts."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: of its folder, from what the experiments vary: ``fedavg_1B2C_bama_seed-2023``.
        flags: flag -> value, as a file for ``fedbias run --config`` holds them, without ``output_dir``.
        settings: every resolved argument, as the run's ``run.json`` will hold them.
        experiments: names of those that it belongs to.
    """

    name: str
    flags: Mapping[str, Any]
    settings: Mapping[str, Any]
    experiments: tuple[str, ...]


def plan_runs(
    experiments: Sequence[Experiment],
    model: ModelConfig,
    overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[PlannedRun]:
    """Every run of ``experiments`` once, those of the first seed first, so that whole tables appear early.

    A flag is taken from the model's ``arguments``, then, where every weight is trained, from its ``full_finetuning``,
    then from the experiment, its grid and ``overrides``, the later winning.

    Args:
        experiments: in this order.
        model: of all runs.
        overrides: flags from the command line.
        seeds: instead of the experiments' own.

    Raises:
        UserError: a flag is unknown, varied and given at once, out of range or in contradiction to another (the run is
            named), two runs of one name differ, or there are more than 10,000.
    """
    overrides = overrides or {}
    for name in overrides:
        check_flag(name, "command line")
    chosen = None if seeds is None else check_seeds(seeds, "--seeds")
    planned: dict[str, PlannedRun] = {}
    for experiment in experiments:
        for varied in _combinations(experiment, overrides):
            for seed in chosen or experiment.seeds:
                run = _planned(experiment, model, varied, {**overrides, "seed": seed})
                known = planned.get(run.name)
                if known is not None:
                    _check_equal(known, run)
                    run = dataclasses.replace(
                        run, experiments=tuple(dict.fromkeys((*known.experiments, experiment.name)))
                    )
                planned[run.name] = run
                if len(planned) > MOST_RUNS:
                    raise UserError(f"{experiment.name} has more than {MOST_RUNS:,} runs; make its grid smaller.")
    order = list(dict.fromkeys(run.settings["seed"] for run in planned.values()))
    return sorted(planned.values(), key=lambda run: order.index(run.settings["seed"]))


def _combinations(experiment: Experiment, overrides: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What varies in the runs of ``experiment``, the seed aside."""
    for axes in experiment.grid:
        both = sorted(set(axes) & set(overrides))
        if both:
            raise UserError(
                f"--{both[0]} is what {experiment.name} varies; drop it, or write an experiment of your own."
            )
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))


def _planned(
    experiment: Experiment, model: ModelConfig, varied: Mapping[str, Any], given: Mapping[str, Any]
) -> PlannedRun:
    flags = _merged(model, experiment.arguments, varied, given)
    is_centralised = flags.pop(CENTRALISED, False)
    try:
        settings = _settings(flags)
        name = _run_name(settings, varied, is_centralised)
        if is_centralised:
            flags = _in_one_place(flags, settings)
            settings = _settings(flags)
    except UserError as error:
        which = ", ".join(f"{name} {value}" for name, value in {**varied, "seed": given["seed"]}.items())
        raise UserError(f"{experiment.name}, {which}: {error}") from None
    return PlannedRun(name, flags, settings, (experiment.name,))


def _merged(model: ModelConfig, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of ``layers``, the later winning, over the model's own for this kind of training."""
    wanted: dict[str, Any] = {}
    for layer in layers:
        for name in layer:
            wanted.pop(EITHER_OR.get(name, ""), None)
        wanted.update(layer)
    flags = {**model.arguments, **wanted}
    # The bundled model has adapters unless told otherwise, all others must be told.
    is_tiny = flags.get("model_name_or_path", TINY) == TINY
    if str(flags.get("use_peft", is_tiny)).lower() in FALSE:
        known, without = all_options(), {"use_peft": False}
        kept = {name: value for name, value in model.arguments.items() if known[name].is_read(without)}
        flags = {**kept, **model.full_finetuning, **without, **wanted}
    for name in wanted:
        if EITHER_OR.get(name) not in wanted:
            flags.pop(EITHER_OR.get(name, ""), None)
    return flags


def _settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    host, bias, _ = resolve([("the sweep", flags)])
    return dataclasses.asdict(host) | dataclasses.asdict(bias)


def _in_one_place(flags: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a run whose one client holds as many rows as all did, as many of them biased, and trains as long."""
    if settings["aggregation"] != "plain" or settings["fed_alg"] != "fedavg":
        raise UserError("a centralised run has nobody to weigh: give --fed_alg fedavg and --aggregation plain.")
    clients = settings["num_clients"]
    if settings["sample_clients"] != clients:
        raise UserError("a centralised run has the rows of all clients: let all of them take part (--sample_clients).")
    split = build(BiasArguments, [("the sweep", settings)]).split
    shares = split.shares(clients, settings["seed"]) if split else None
    if shares is None:
        raise UserError(
            f"a centralised run needs every client's biased share, and --scenario {settings['scenario']} tells none."
        )
    longer = {} if settings["local_epochs"] else {"max_steps": settings["max_steps"] * clients}
    return {
        **flags,
        **longer,
        "num_clients": 1,
        "sample_clients": 1,
        "client_samples": settings["client_samples"] * clients,
        "scenario": "custom",
        "biased_shares": repr(round(sum(shares) / clients, 6)),
    }


def _run_name(settings: Mapping[str, Any], varied: Mapping[str, Any], is_centralised: bool) -> str:
    """Algorithm, scenario and aggregation, then what else varies and is not as by default, then the seed."""
    parts = [str(settings[name]) for name in IN_EVERY_NAME]
    named = {*IN_EVERY_NAME, CENTRALISED}
    if is_centralised:
        parts = [CENTRALISED, "lora" if settings["use_peft"] else "full", parts[1]]
        named.add("use_peft")
    extra = [name for name in sorted(varied) if name not in named and settings[name] != defaults()[name]]
    name = re.sub(r"[^\w.+-]+", "-", "_".join([*parts, *(f"{name}-{settings[name]}" for name in extra)]))
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{name}_seed-{settings['seed']}"


def _check_equal(one: PlannedRun, other: PlannedRun) -> None:
    differing = [name for name, value in one.settings.items() if other.settings[name] != value]
    if differing:
        named = ", ".join(f"{name} {quoted(one.settings[name])} / {quoted(other.settings[name])}" for name in differing)
        raise UserError(
            f"{one.experiments[0]} and {other.experiments[0]} both have a run {one.name}, with different flags "
            f"({named}); sweep them into different folders (--output)."
        )
