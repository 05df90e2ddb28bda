"""A round and a run as numbers by name, the one list that studies, W&B's table of runs and its curves are made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedbias_plugin.metrics.base import delta, metric_class
from fedbias_plugin.registry import load, names
from fedbias_plugin.tracking.payload import payload_numbers
from fedbias_plugin.tracking.records import RoundRecord

MEANS = ("weight_on_poisoned", "mass", "effective_clients")
"""Of a run, the mean over its trained rounds stands for these."""
OF_CLIENT = ("weight", "bias_score", "poisoned_share", "train_loss", "update_norm")
VIEWS = ("report", "full", "probe")


MEMORY = "client_memory_bytes"
"""Further number of a client: the estimate of what its training takes."""


def metric_names() -> tuple[str, ...]:
    """The metrics that there are but those that take something, such as ``harness:TASK``, which stand for many."""
    return tuple(name for name in names("metric") if not load("metric", name).takes)


def record_numbers(record: RoundRecord) -> Iterator[dict[str, Any]]:
    """Every number of a round: ``client`` (-1: the global model), ``metric``, ``part``, ``value`` and what it is of.

    ``part`` is '' for the headline, a view (``report``, ``full``, ``probe``: the items it is of; the headline is of one
    of them) or a category; ``metric`` is ``crows_pairs``, a further number of it such as ``stereoset/lms``, or a number
    of the round such as ``weight_on_poisoned``. What is absent is not known.
    """
    for name, block in record.global_.metrics.items():
        metric = metric_class(name)
        views = {view: block if block.get("items") == view else block.get(view) for view in VIEWS}
        parts = {"": block, **{view: own for view, own in views.items() if isinstance(own, Mapping)}}
        for client, one in metric.by_client(block).items():
            yield {"client": client, "metric": name, "part": "", **_numbers(one)}
        of_categories = {key: {"value": own.get(metric.main), **own} for key, own in metric.categories(block).items()}
        for part, own in {**of_categories, **parts}.items():
            yield {"client": -1, "metric": name, "part": part, **_numbers(own)}
        for part, own in parts.items():
            for key in [key for key in own if key not in ("value", "ideal", "n", metric.main)]:
                if isinstance(own[key], int | float) and not isinstance(own[key], bool):
                    yield {"client": -1, "metric": f"{name}/{key}", "part": part, **_numbers(own, key)}
    memory = [row.extra[MEMORY] for row in record.clients.values() if MEMORY in row.extra]
    of_round = {
        "bias_score": record.global_.bias_score,
        "weight_on_poisoned": record.weight_on_poisoned,
        "mass": record.aggregation_mass,
        "effective_clients": record.effective_clients,
        "learning_rate": record.learning_rate,
        "peak_memory_mib": record.peak_memory_bytes / 2**20 or None,
        "client_memory_mib": max(memory) / 2**20 if memory else None,
        **payload_numbers(record.payload),
        **{f"seconds/{part}": value for part, value in dataclasses.asdict(record.seconds).items()},
        **record.extra,
    }
    yield from ({"client": -1, "metric": name, "part": "", "value": value} for name, value in of_round.items())
    for client, row in record.clients.items():
        of_client = {name: getattr(row, name) for name in OF_CLIENT} | row.extra
        of_client |= payload_numbers(row.payload)
        yield from ({"client": client, "metric": name, "part": "", "value": one} for name, one in of_client.items())
        for name, block in row.metrics.items():
            yield {"client": client, "metric": name, "part": "", **_numbers(block)}


def measures(record: RoundRecord) -> dict[str, float]:
    """Measure -> finite number of the global model after a round.

    Beside the headlines of :func:`record_numbers` there are ``NAME/n``, ``NAME/delta`` = |value - ideal| and ``delta``,
    the mean over the metrics that make the bias score: unlike that score it does not depend on ``--bama_alpha``.
    """
    blocks = record.global_.metrics
    found = {row["metric"]: row["value"] for row in record_numbers(record) if row["client"] < 0 and not row["part"]}
    found |= {f"{name}/n": block.get("n") for name, block in blocks.items()}
    found |= {f"{name}/delta": delta(block) for name, block in blocks.items()}
    known = finite(found)
    biased = [f"{name}/delta" for name in blocks if metric_class(name).in_bias_score]
    return known | _over([known[name] for name in biased if name in known], "delta")


def run_measures(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Measure -> number of a run, with at least one round, as reports and W&B's table of runs show it.

    Metrics are of the last measured round, with ``NAME/change`` since round 0; weights and mass are means over the
    trained rounds, seconds and bytes are of the whole run, memory is its peak.
    """
    last, by_round = last_measured(rounds), [measures(record) for record in rounds]
    found = measures(last)
    first = by_round[0] if rounds[0].round == 0 else {}
    both = [name for name in last.global_.metrics if name in found and name in first]
    found |= {f"{name}/change": found[name] - first[name] for name in both}
    for name in dict.fromkeys(name for numbers in by_round for name in numbers):
        if name in MEANS:
            of_rounds = zip(rounds, by_round, strict=True)
            found |= _over([numbers[name] for record, numbers in of_rounds if record.round and name in numbers], name)
        elif name.startswith("seconds/") or (name.startswith("payload/") and not name.endswith("total")):
            found[name] = sum(numbers.get(name, 0.0) for numbers in by_round)
        elif name == "peak_memory_mib":
            found[name] = max(numbers.get(name, 0.0) for numbers in by_round)
    return found


def last_measured(rounds: Sequence[RoundRecord]) -> RoundRecord:
    """The last round in which a metric with an ideal was measured, or the last round."""
    measured = [one for one in rounds if any(block.get("ideal") is not None for block in one.global_.metrics.values())]
    return (measured or list(rounds))[-1]


def best_round(rounds: Sequence[RoundRecord]) -> RoundRecord | None:
    """The trained round whose global model had the smallest bias score; None where none was measured."""
    trained = [one for one in rounds if one.round > 0 and one.global_.metrics and one.global_.bias_score is not None]
    return min(trained, key=lambda one: one.global_.bias_score or 0.0, default=None)


def finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Those that are known and finite."""
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


def _over(values: Sequence[float], name: str) -> dict[str, float]:
    """The mean under ``name``; nothing without values."""
    return {name: sum(values) / len(values)} if values else {}


def _numbers(block: Mapping[str, Any], key: str = "value") -> dict[str, Any]:
    low, high = block.get("ci95" if key == "value" else f"{key}_ci95") or (None, None)
    noise = block.get("noise_floor") if key == "value" else None
    return {"value": block.get(key), "n": block.get("n"), "low": low, "high": high, "noise": noise}
