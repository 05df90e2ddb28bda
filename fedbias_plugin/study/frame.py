"""A study as data: its runs gathered into arms, and every number of them in one long frame, read once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.metrics.stereoset import is_incoherent
from fedbias_plugin.study.comparable import agreeing, faults, named
from fedbias_plugin.study.runs import Run, SeedKey, numbered, read_run, search_runs, unique_names
from fedbias_plugin.study.settings import arm_key, arm_labels, shown_models
from fedbias_plugin.study.statistics import ANYTHING, Interval, Spread, spread
from fedbias_plugin.study.study_file import Wanted, fits, placed
from fedbias_plugin.tracking.numbers import MEANS, record_numbers, run_measures

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("run", "arm", "seed", "round", "client", "metric", "part", "value", "n", "low", "high", "noise")
"""Of the long frame; from ``client`` on they are those of ``record_numbers``."""
NUMBERS = COLUMNS[COLUMNS.index("value") :]
PERCENT, SHARE, NOT_NEGATIVE = (0.0, 100.0), (0.0, 1.0), (0.0, math.inf)
PERCENTAGES = ("lms", "icat", "length_only", "tie_rate")
OF_PRIVACY = ("dp_epsilon", "dp_max_grad_norm", "cda_ratio")
ORDERED_BY = ("model", "training", "clients", "scenario", "aggregation", "weighting", "strength", *OF_PRIVACY)
NOT_NEGATIVES = (
    *("heldout_loss", "bias_score", "train_loss", "update_norm", "peak_memory_mib", "client_memory_mib"),
    *("seconds", "payload"),
    *MEANS,
)


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in nothing but their seeds and their names.

    Attributes:
        label: short, unique in the study: ``fedavg 1B2C bama (paper)``.
        runs: by seed.
        place: among the labels of a study file, from 0, where that gave it its own; it has one look in all figures.
    """

    label: str
    runs: tuple[Run, ...]
    place: int | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of its first run."""
        return self.runs[0].facts

    @property
    def model(self) -> str:
        """The model's short name."""
        return self.runs[0].model

    @property
    def by_seed(self) -> dict[SeedKey, Run]:
        """Seeds -> run, for the runs whose seed is known."""
        return {run.seed_key: run for run in self.runs if run.seed_key is not None}


@dataclass(frozen=True, eq=False)
class Study:
    """Everything a report is made of.

    Attributes:
        arms: in the order in which their first runs were found.
        warnings: what was left out and why, and what does not fit together.
    """

    arms: tuple[Arm, ...]
    warnings: tuple[str, ...] = ()

    def called(self, names: Mapping[Any, str], labels: Mapping[str, Wanted] | None = None) -> Study:
        """The same with settings and their values in labels by ``names`` of a study file, arms by its ``labels``."""
        given = list((labels or {}).items())
        places = [next((at for at, (_, own) in enumerate(given) if fits(arm.facts, own)), None) for arm in self.arms]
        made = arm_labels([arm.runs[0] for arm in self.arms], names)
        unique = numbered([own if at is None else given[at][0] for at, own in zip(places, made, strict=True)])
        rows = zip(self.arms, unique, places, strict=True)
        arms = (dataclasses.replace(arm, label=label, place=place) for arm, label, place in rows)
        return dataclasses.replace(self, arms=tuple(arms))

    def ordered(self, order: Mapping[str, Sequence[Any]]) -> Study:
        """The same with its arms in an order that their facts alone decide; ``order``: fact -> its values."""

        def key(arm: Arm) -> list[Any]:
            return [placed(arm.facts.get(name), order.get(name, ())) for name in ORDERED_BY]

        return dataclasses.replace(self, arms=tuple(sorted(self.arms, key=key)))

    @property
    def runs(self) -> list[Run]:
        """Of all arms."""
        return [run for arm in self.arms for run in arm.runs]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Every number of every round: a row of :data:`COLUMNS` each."""
        import pandas as pd

        rows = [
            {"run": run.name, "arm": arm.label, "seed": run.seed, "round": record.round, **number}
            for arm in self.arms
            for run in arm.runs
            for record in run.rounds
            for number in record_numbers(record)
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(NUMBERS, float))

    def by_round(self, metric: str, part: str = "") -> pd.DataFrame:
        """The frame's rows of a measure of the global model, by run and round."""
        own = self.frame[(self.frame["metric"] == metric) & (self.frame["part"] == part) & (self.frame["client"] < 0)]
        return own.set_index(["run", "round"])

    @cached_property
    def last(self) -> pd.DataFrame:
        """The frame's rows of the global model in the last measured round of every run."""
        rounds = self.frame["run"].map({run.name: run.last_measured.round for run in self.runs})
        return self.frame[(self.frame["client"] < 0) & (self.frame["round"] == rounds)]

    @cached_property
    def finals(self) -> pd.DataFrame:
        """A row a run (index: its name), a column a measure (``run_measures``)."""
        import pandas as pd

        rows = {run.name: run_measures(run.rounds) for run in self.runs}
        return pd.DataFrame.from_dict(rows, orient="index").astype(float)

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that were measured, those with an ideal first."""
        found = dict.fromkeys(name for run in self.runs for name in run.last_measured.global_.metrics)
        return sorted(found, key=lambda name: metric_class(name).ideal is None)

    @property
    def aimed(self) -> list[str]:
        """The metrics that were measured and have an ideal."""
        return [name for name in self.metrics if metric_class(name).ideal is not None]

    @property
    def means(self) -> pd.DataFrame:
        """A row an arm (index: its label), a column a measure: the mean over its runs."""
        of_run = {run.name: arm.label for arm in self.arms for run in arm.runs}
        return self.finals.groupby(of_run, sort=False).mean()

    def by_seed(self, arm: Arm, measure: str) -> dict[SeedKey, float]:
        """Seeds -> final value, for the runs that have it."""
        return {seed: value for seed, run in arm.by_seed.items() if (value := self.value(run, measure)) is not None}

    def value(self, run: Run, measure: str) -> float | None:
        """One number of :attr:`finals`."""
        value = float(self.finals.at[run.name, measure]) if measure in self.finals else math.nan
        return value if math.isfinite(value) else None

    def spread(self, arm: Arm, measure: str) -> Spread | None:
        """A measure over the runs of an arm that have it."""
        values = (self.value(run, measure) for run in arm.runs)
        return spread((value for value in values if value is not None), possible(measure))

    def noise(self, arm: Arm, metric: str) -> float:
        """How far from the ideal a model without preference is expected on the arm's items."""
        floor = self.spread(arm, f"{metric}/noise_floor")
        return floor.mean if floor else 0.0

    def is_unsound(self, arm: Arm, metric: str) -> bool:
        """Whether an LMS beside the metric is too low for its value to mean anything (docs/metrics.md)."""
        lms = self.spread(arm, f"{metric}/lms")
        return lms is not None and is_incoherent({"lms": lms.mean})


def possible(measure: str) -> Interval:
    """Between which bounds a measure lies."""
    of, _, last = measure.rpartition("/")
    if last in ("delta", "change"):
        low, high = possible(of)
        if last == "change":
            return low - high, high - low
        return (0.0, high / 2) if (low, high) == PERCENT else NOT_NEGATIVE
    name, _, part = measure.partition("/")
    if (of_metric := metric_class(name).possible(part)) is not None:
        return of_metric
    if part in PERCENTAGES or name == "rouge_l" or (not part and metric_class(name).ideal == 50.0):
        return PERCENT
    if name in ("weight", "weight_on_poisoned"):
        return SHARE
    return NOT_NEGATIVE if name in NOT_NEGATIVES else ANYTHING


def load_study(folders: Sequence[str | Path]) -> Study:
    """Read every run in ``folders``: sweeps, runs, or folders that hold runs.

    Runs that cannot be read, have not finished, or are not of the arm whose settings they have are left out and named.

    Raises:
        UserError: a folder is missing, no run can be read, or none has finished.
    """
    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in search_runs(Path(folder))))
    warnings: list[str] = []
    runs: list[Run] = []
    for name, path in zip(unique_names(paths), paths, strict=True):
        try:
            runs.append(read_run(name, path, warnings))
        except UserError as error:
            warnings.append(f"{name} is left out: {error}")
    if not runs:
        raise UserError(f"None of the {len(paths)} runs can be read. {' '.join(warnings)}")
    if not any(run.is_finished for run in runs):
        states = ", ".join(f"{run.name} at round {run.rounds[-1].round}" for run in runs[:3])
        raise UserError(f"No run has finished ({states}); fedbias compare shows runs that have not.")
    kept = []
    for run in runs:
        last, planned = run.rounds[-1].round, quoted(run.settings.get("num_rounds"))
        if not run.settings:
            warnings.append(f"{run.name}: neither its records nor run.json say its settings; it stands for itself.")
        if not run.is_finished:
            warnings.append(f"{run.name} is left out: it has not finished, its last round is {last} of {planned}.")
        elif found := faults(run):
            warnings.append(f"{run.name} is left out, its records are not those of its settings: {named(found)}.")
        else:
            kept.append(run)
    if not kept:
        raise UserError(f"No run can be used. {' '.join(warnings)}")
    models = shown_models(run.model_path for run in kept)
    kept = [dataclasses.replace(run, model=models[run.model_path]) for run in kept]
    arms = tuple(Arm("", tuple(own)) for own in _gathered(kept, warnings))
    return Study(arms, tuple(warnings)).called({})


def _gathered(runs: Sequence[Run], warnings: list[str]) -> list[list[Run]]:
    """The runs by arm; those that no arm has are named in ``warnings``."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(arm_key(run.settings, run.aggregation) or f"run {run.name}", []).append(run)
    repeats: list[str] = []
    members = []
    for group in groups.values():
        agreed, apart = agreeing(_one_run_per_seed(group, repeats))
        members.append(agreed)
        for name, why in apart.items():
            warnings.append(f"{name} is left out, it is not comparable with {agreed[0].name}: {named(why)}.")
    if repeats:
        warnings.append(f"Left out, settings and seed are those of another run: {'; '.join(repeats)}.")
    return members


def _one_run_per_seed(group: Sequence[Run], repeats: list[str]) -> list[Run]:
    """The first run of every seed, one with scores of its items before others."""
    by_seed: dict[SeedKey | None, Run] = {}
    for run in sorted(group, key=lambda run: not (run.folder / "scores").is_dir()):
        kept = by_seed.setdefault(run.seed_key, run)
        if kept is not run:
            is_equal = run.last_measured.global_ == kept.last_measured.global_
            repeats.append(f"{run.name} (as {kept.name}{'' if is_equal else ', with other numbers'})")
    return sorted(by_seed.values(), key=lambda run: run.seed_key or (-1, -1))
