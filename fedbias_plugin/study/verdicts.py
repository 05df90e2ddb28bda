"""What the seeds say of a comparison: paired outcomes, and their verdict on what was claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.metrics.formatting import number
from fedbias_plugin.study.comparable import named
from fedbias_plugin.study.frame import Arm, possible
from fedbias_plugin.study.runs import SeedKey
from fedbias_plugin.study.statistics import SeedComparison, Spread, compare_seeds, p_text, spread
from fedbias_plugin.study.study_file import Comparison

SUPPORTED, PARTLY, CONTRADICTED = "supported", "partly supported", "contradicted"
OVERCORRECTED, NOT_SIGNIFICANT = "over-corrected", "not significant"
NOT_TESTABLE, DIFFERENT, DISAGREE = "not testable", "significant", "metrics disagree"
LEVEL = 0.05


@dataclass(frozen=True)
class Outcome:
    """One metric of a pair of arms, or of several pairs together.

    Attributes:
        metric: its name.
        values: seed -> value of the reference, and of the arm; of the seeds that can be compared.
        noise: how far from the ideal a model without preference is expected to be.
        is_unsound: an LMS is below 60, so that the values mean little.
    """

    metric: str
    values: tuple[Mapping[SeedKey, float], Mapping[SeedKey, float]]
    noise: float
    is_unsound: bool

    @cached_property
    def tested(self) -> SeedComparison | None:
        """Arm minus reference; None without a seed that both have."""
        return compare_seeds(*self.values, possible(f"{self.metric}/change"))

    @property
    def before(self) -> Spread | None:
        """The reference over the seeds."""
        return spread(self.values[0].values(), possible(self.metric))

    @property
    def after(self) -> Spread | None:
        """The arm over the seeds."""
        return spread(self.values[1].values(), possible(self.metric))


@dataclass(frozen=True)
class Pair:
    """Two arms that differ in what a comparison varies, what the pair is called, and metric -> outcome."""

    reference: Arm
    arm: Arm
    name: str
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of a comparison by one metric, in one of the words above, and why."""

    metric: str
    word: str
    reason: str


def judge(comparison: Comparison, pooled: Outcome, pairs: Sequence[Pair] = ()) -> Verdict:
    """What the pooled difference says of the claim, on the signed value with the noise floor as tolerance.

    Bias is told only where the more biased arm stands above the ideal by more than the noise floor. A reduced one that
    passes the ideal by less than that has reached it.
    """
    metric, ideal = metric_class(pooled.metric), metric_class(pooled.metric).ideal
    tested, before, after = pooled.tested, pooled.before, pooled.after
    if tested is None or before is None or after is None:
        return Verdict(pooled.metric, NOT_TESTABLE, "no seed was measured in all of its arms.")
    digits = metric.digits
    moved = f"from {number(before.mean, digits)} to {number(after.mean, digits)}, {_shown(tested, max(2, digits))}"
    if pooled.is_unsound:
        return Verdict(pooled.metric, NOT_TESTABLE, f"{moved}; LMS below 60, so that SS says little.")
    if tested.p_holm is None:
        why = "too few to test" if tested.difference.n == 1 else "the same in every seed, which leaves nothing to test"
        return Verdict(pooled.metric, NOT_TESTABLE, f"{moved}; {why}.")
    if tested.p_holm >= LEVEL:
        return Verdict(pooled.metric, NOT_SIGNIFICANT, f"{moved}.")
    if not (comparison.expect and comparison.claim):
        return Verdict(pooled.metric, DIFFERENT, f"{moved}.")
    sign = 1 if comparison.expect == "up" else -1
    is_expected = sign * tested.difference.mean > 0
    if comparison.scale == "bias" and ideal is not None:
        above = max(before.mean, after.mean) - ideal
        if above <= pooled.noise:
            what = f"neither value is above {ideal:g} by more than the noise floor of {number(pooled.noise, digits)}"
            return Verdict(pooled.metric, NOT_TESTABLE, f"{moved}; {what}.")
        if is_expected and comparison.expect == "down" and after.mean - ideal < -pooled.noise:
            what = f"it ends below {ideal:g} by more than the noise floor of {number(pooled.noise, digits)}"
            return Verdict(pooled.metric, OVERCORRECTED, f"{moved}; {what}.")
    if not is_expected:
        return Verdict(pooled.metric, CONTRADICTED, f"{moved}.")
    against = [
        pair.name
        for pair in pairs
        if (own := pair.outcomes[pooled.metric].tested) is not None and sign * own.difference.mean <= 0
    ]
    if against:
        return Verdict(pooled.metric, PARTLY, f"{moved}; not so for {named(against)}.")
    return Verdict(pooled.metric, SUPPORTED, f"{moved}.")


def _shown(tested: SeedComparison, digits: int) -> str:
    """``-17.20 [-20.10, -14.30], p = 0.012 after Holm, 3 seeds``."""
    value = tested.difference
    bounds = f" [{value.ci95[0]:+.{digits}f}, {value.ci95[1]:+.{digits}f}]" if value.ci95 else ""
    parts = [f"{value.mean:+.{digits}f}{bounds}"]
    if tested.p_holm is not None:
        parts.append(f"{p_text(tested.p_holm)} after Holm")
    return ", ".join([*parts, f"{value.n} seed{'' if value.n == 1 else 's'}"])
