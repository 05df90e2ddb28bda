"""The measures of a run that tables show, each read from its records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.report.statistics_over_seeds import Spread, spread
from fedbias_plugin.report.study import Arm, SeedKey, StudyRun
from fedbias_plugin.scales import LOWEST_LMS, UNBIASED
from fedbias_plugin.tracking.records import RoundRecord


@dataclass(frozen=True)
class Measure:
    """A number of a run.

    Attributes:
        id: as CSV names it.
        title: as tables head it, with the unit where it is not percentage points.
        read: its value, None where it was not measured.
        digits: decimals shown.
        benchmark: whose items it is of, None for none.
    """

    id: str
    title: str
    read: Callable[[StudyRun], float | None]
    digits: int = 1
    benchmark: str | None = None


def of_runs(arm: Arm, measure: Measure) -> Spread | None:
    """``measure`` over the runs of an arm that have it."""
    return spread(value for run in arm.runs if (value := measure.read(run)) is not None)


def by_seed(arm: Arm, measure: Measure) -> dict[SeedKey, float]:
    """Seeds -> ``measure``, for the runs that have it."""
    return {seed: value for seed, run in arm.by_seed.items() if (value := measure.read(run)) is not None}


def crows_score(record: RoundRecord) -> float | None:
    """The headline CrowS-Pairs score."""
    return _number(record.global_.crows_pairs, "score")


def length_only(record: RoundRecord) -> float | None:
    """The CrowS score of "fewer tokens wins" on the pairs of :func:`crows_score`; None for older files."""
    return _number(record.global_.crows_pairs, "length_only")


def ss(record: RoundRecord) -> float | None:
    """The headline SS."""
    return _number(record.global_.stereoset, "ss")


def lms(record: RoundRecord) -> float | None:
    """The LMS of the same items as :func:`ss`."""
    return _number(record.global_.stereoset, "lms")


def icat(record: RoundRecord) -> float | None:
    """The ICAT of the same items as :func:`ss`."""
    return _number(record.global_.stereoset, "icat")


def heldout_loss(record: RoundRecord) -> float | None:
    """Nats per response token on clean rows that no client holds."""
    return _number(record.global_.heldout_loss, "loss")


def perplexity(record: RoundRecord) -> float | None:
    """``exp`` of the held-out loss, as recorded or computed for older files; None beyond what a float holds."""
    recorded = _number(record.global_.heldout_loss, "perplexity")
    loss = heldout_loss(record)
    if recorded is not None or loss is None:
        return recorded
    try:
        return math.exp(loss)
    except OverflowError:
        return None


def rouge_l(record: RoundRecord) -> float | None:
    """Mean ROUGE-L F1 of responses to held-out instructions, percent."""
    return _number(record.global_.rouge_l, "f1")


def delta(score: float | None) -> float | None:
    """The paper's Delta, ``|score - 50|`` in percentage points."""
    return None if score is None else abs(score - UNBIASED)


def _number(block: Mapping[str, Any] | None, key: str) -> float | None:
    value = (block or {}).get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _final(read: Callable[[RoundRecord], float | None]) -> Callable[[StudyRun], float | None]:
    return lambda run: read(run.last_measured)


def _original(read: Callable[[RoundRecord], float | None]) -> Callable[[StudyRun], float | None]:
    return lambda run: None if run.first is None else read(run.first)


def _change(read: Callable[[RoundRecord], float | None]) -> Callable[[StudyRun], float | None]:
    def change(run: StudyRun) -> float | None:
        before = None if run.first is None else read(run.first)
        after = read(run.last_measured)
        return None if before is None or after is None else after - before

    return change


def _mean(read: Callable[[RoundRecord], float | None]) -> Callable[[StudyRun], float | None]:
    """Mean over the trained rounds that have the number."""

    def mean(run: StudyRun) -> float | None:
        values = [value for record in run.rounds if record.clients and (value := read(record)) is not None]
        return math.fsum(values) / len(values) if values else None

    return mean


def _total(part: str) -> Callable[[StudyRun], float | None]:
    return lambda run: math.fsum(getattr(record.seconds, part) for record in run.rounds)


def _peak_memory(run: StudyRun) -> float | None:
    return max(record.peak_memory_bytes for record in run.rounds) / 2**20 or None


def _crows_delta(record: RoundRecord) -> float | None:
    return delta(crows_score(record))


def _ss_delta(record: RoundRecord) -> float | None:
    return delta(ss(record))


DELTA_CROWS = Measure("delta_crows", "ΔCrowS", _final(_crows_delta), 2, "crows_pairs")
DELTA_SS = Measure("delta_ss", "ΔSS", _final(_ss_delta), 2, "stereoset")
ORIGINAL_DELTA_CROWS = Measure("delta_crows", "ΔCrowS", _original(_crows_delta), 2, "crows_pairs")
ORIGINAL_DELTA_SS = Measure("delta_ss", "ΔSS", _original(_ss_delta), 2, "stereoset")
CROWS = Measure("crows_score", "CrowS score", _final(crows_score), 1, "crows_pairs")
LENGTH_ONLY = Measure("crows_length_only", "length alone", _final(length_only), 1, "crows_pairs")
SS = Measure("ss", "SS", _final(ss), 1, "stereoset")
LMS = Measure("lms", "LMS", _final(lms), 1, "stereoset")
ICAT = Measure("icat", "ICAT", _final(icat), 1, "stereoset")
ORIGINAL_CROWS = Measure("crows_score", "CrowS score", _original(crows_score), 1, "crows_pairs")
ORIGINAL_SS = Measure("ss", "SS", _original(ss), 1, "stereoset")
ORIGINAL_LMS = Measure("lms", "LMS", _original(lms), 1, "stereoset")
ORIGINAL_ICAT = Measure("icat", "ICAT", _original(icat), 1, "stereoset")
CROWS_CHANGE = Measure("crows_change", "CrowS − round 0", _change(crows_score), 1, "crows_pairs")
SS_CHANGE = Measure("ss_change", "SS − round 0", _change(ss), 1, "stereoset")
HELDOUT_LOSS = Measure("heldout_loss", "held-out loss (nats/token)", _final(heldout_loss), 3)
PERPLEXITY = Measure("perplexity", "perplexity", _final(perplexity), 1)
LOSS_CHANGE = Measure("heldout_loss_change", "loss − round 0", _change(heldout_loss), 3)
ROUGE_L = Measure("rouge_l", "ROUGE-L", _final(rouge_l), 1)
WEIGHT_ON_POISONED = Measure("weight_on_poisoned", "weight on poisoned", _mean(lambda r: r.weight_on_poisoned), 3)
MASS = Measure("mass", "mass", _mean(lambda r: r.aggregation_mass), 3)
SECONDS = tuple(
    Measure(f"seconds_{part}", f"{part} (s)", _total(part)) for part in ("train", "assess", "aggregate", "evaluate")
)
PEAK_MEMORY = Measure("peak_memory_mib", "peak memory (MiB)", _peak_memory, 0)


def is_incoherent(value: Spread | None) -> bool:
    """Whether a mean LMS is too low for SS to mean anything (METRICS section 3)."""
    return value is not None and value.mean < LOWEST_LMS
