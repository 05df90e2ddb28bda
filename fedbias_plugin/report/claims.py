"""The findings of the paper's abstract, each held against the study's runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fedbias_plugin.report.measures import DELTA_SS, LMS, Measure, by_seed, is_incoherent, of_runs
from fedbias_plugin.report.paper import ALGORITHMS, Paper
from fedbias_plugin.report.statistics_over_seeds import Spread, spread
from fedbias_plugin.report.study import Arm, Study
from fedbias_plugin.report.table_arms import DELTAS, models, paper_arms, pick, same_items
from fedbias_plugin.report.table_model import Cell, Column, Row, Table, spread_cell
from fedbias_plugin.report.table_studies import MIXED

AGREES, DISAGREES, UNTOLD = "agrees", "disagrees", "cannot be told"
BIASED = ("1B2C", "2B1C", "3B", "mix-1B2C", "mix-2B1C")
RULE = (
    "A finding is tested on the difference in Delta, seed by seed, as a mean over its pairs of arms. It agrees when "
    "the 95% t interval lies on its side of 0 and no part of the pairs points the other way; it disagrees when the "
    "interval lies on the other side. Otherwise it cannot be told, nor with fewer than two seeds, nor, for SS, where "
    "an LMS is below 60, nor where the benchmarks contradict each other. Intervals are not corrected for their number."
)


@dataclass(frozen=True)
class Pair:
    """Two arms whose difference a finding is about; ``part`` is what it must hold for throughout."""

    part: str
    reference: Arm
    arm: Arm


@dataclass(frozen=True)
class MeasureVerdict:
    """One benchmark's part of a judgement.

    Attributes:
        verdict: ``agrees``, ``disagrees`` or ``cannot be told``.
        reason: the numbers that decide it, or why they do not.
        difference: over seeds; None without a shared seed.
        is_unsound: an LMS of the pairs is below 60, and this is StereoSet's.
    """

    verdict: str
    reason: str
    difference: Spread | None = None
    is_unsound: bool = False


@dataclass(frozen=True)
class Judgement:
    """A finding of the abstract beside the study.

    Attributes:
        claim: its id.
        statement: in our words.
        model: whose runs decide.
        variant: what of several is judged, such as BAMA's weighting; or ''.
        verdict: ``agrees``, ``disagrees`` or ``cannot be told``.
        crows: CrowS-Pairs' part.
        ss: StereoSet's part.
        pairs: how many pairs of arms.
    """

    claim: str
    statement: str
    model: str
    variant: str
    verdict: str
    crows: MeasureVerdict
    ss: MeasureVerdict
    pairs: int


def judge_claims(study: Study, paper: Paper) -> list[Judgement]:
    """Every claim the study has pairs of arms for, by model."""
    arms = paper_arms(study)
    result = []
    for claim, (find, sign) in _CLAIMS.items():
        for model in models(arms):
            own = [arm for arm in arms if arm.model == model]
            for variant in _variants(claim, own):
                pairs = list(find(own, variant))
                if pairs:
                    result.append(_judge(claim, paper.claims[claim], model, variant, pairs, sign))
    return result


def claims(study: Study, paper: Paper | None) -> Table | None:
    """The judgements as a table; None without any."""
    found = judge_claims(study, paper) if paper else []
    if not found:
        return None
    rows = []
    for one in found:
        variant = f" ({one.variant})" if one.variant else ""
        cells = [Cell(text=one.verdict)]
        for part in (one.crows, one.ss):
            cells.append(replace(spread_cell(part.difference, is_signed=True), is_unsound=part.is_unsound))
        cells.append(Cell(text=f"CrowS-Pairs: {one.crows.reason} StereoSet: {one.ss.reason}"))
        rows.append(Row((f"{one.statement}{variant}", one.model), tuple(cells), one.claim))
    columns = (
        Column("verdict", "verdict"),
        *(Column(measure.title, f"{measure.id}_difference", "difference") for measure in DELTAS),
        Column("why", "why"),
    )
    caption = "The findings of the paper's abstract, in our words, and what these runs say about them."
    stub = ("finding", "model")
    return Table("claims", "The paper's findings", caption, stub, columns, tuple(rows), (RULE,))


def _judge(claim: str, statement: str, model: str, variant: str, pairs: Sequence[Pair], sign: int) -> Judgement:
    crows, stereo = (_measure_verdict(pairs, measure, sign) for measure in DELTAS)
    told = {crows.verdict, stereo.verdict} - {UNTOLD}
    verdict = told.pop() if len(told) == 1 else UNTOLD
    return Judgement(claim, statement, model, variant, verdict, crows, stereo, len(pairs))


def _measure_verdict(pairs: Sequence[Pair], measure: Measure, sign: int) -> MeasureVerdict:
    differences = [_differences(pair, measure) for pair in pairs]
    seeds = set.intersection(*(set(found) for found in differences))
    pooled = spread(sum(found[seed] for found in differences) / len(differences) for seed in sorted(seeds))
    if measure is DELTA_SS and any(
        is_incoherent(of_runs(arm, LMS)) for pair in pairs for arm in (pair.reference, pair.arm)
    ):
        return MeasureVerdict(UNTOLD, "LMS below 60, so that SS says little.", pooled, True)
    if pooled is None:
        return MeasureVerdict(UNTOLD, "no seed was measured in all of its arms.")
    points = _points(pooled, [by_seed(pair.reference, measure)[seed] for pair in pairs for seed in seeds])
    if pooled.ci95 is None:
        return MeasureVerdict(UNTOLD, f"{points} in one seed, which has no interval.", pooled)
    low, high = pooled.ci95
    if low <= 0 <= high:
        return MeasureVerdict(UNTOLD, f"{points}, an interval around 0.", pooled)
    if not pooled.sd:
        return MeasureVerdict(UNTOLD, f"{points} in every seed alike: the seeds changed nothing.", pooled)
    against = [] if sign * pooled.mean < 0 else list(_parts_against(pairs, differences, seeds, sign))
    if against:
        return MeasureVerdict(UNTOLD, f"{points}, but the other way for {', '.join(against)}.", pooled)
    return MeasureVerdict(AGREES if sign * pooled.mean > 0 else DISAGREES, f"{points}.", pooled)


def _differences(pair: Pair, measure: Measure) -> dict[int, float]:
    """Seed -> arm minus reference, of runs on the very same items."""
    before, after = by_seed(pair.reference, measure), by_seed(pair.arm, measure)
    shared = before.keys() & after.keys()
    runs = pair.reference.by_seed, pair.arm.by_seed
    return {seed: after[seed] - before[seed] for seed in shared if same_items(runs[0][seed], runs[1][seed], measure)}


def _parts_against(
    pairs: Sequence[Pair], differences: Sequence[dict[int, float]], seeds: set[int], sign: int
) -> Iterator[str]:
    """The parts whose mean difference has not the sign of the claim."""
    for part in dict.fromkeys(pair.part for pair in pairs):
        values = [
            found[seed] for pair, found in zip(pairs, differences, strict=True) if pair.part == part for seed in seeds
        ]
        if sign * sum(values) <= 0:
            yield part


def _points(value: Spread, references: Sequence[float]) -> str:
    """The difference, its interval, and its share of the references' mean Delta."""
    interval = f" [{value.ci95[0]:+.2f}, {value.ci95[1]:+.2f}]" if value.ci95 else ""
    before = sum(references) / len(references)
    share = f" ({100 * value.mean / before:+.0f}% of {before:.2f})" if before else ""
    return f"{value.mean:+.2f}{interval} points{share}"


def _variants(claim: str, arms: Sequence[Arm]) -> list[str]:
    """BAMA is judged by weighting, the paper's first."""
    if claim != "bama_reduces":
        return [""]
    return sorted({arm.weighting for arm in arms if arm.weighting}, reverse=True)


def _fedadam(arms: Sequence[Arm], variant: str) -> Iterator[Pair]:
    """FedAdam minus every other algorithm of Table 1, on every scenario with biased rows."""
    for scenario in BIASED:
        adam = pick(arms, [], fed_alg="fedadam", scenario=scenario, aggregation="host")
        for algorithm in ALGORITHMS:
            other = pick(arms, [], fed_alg=algorithm, scenario=scenario, aggregation="host")
            if adam and other and other is not adam:
                yield Pair(algorithm, other, adam)


def _third(arms: Sequence[Arm], variant: str) -> Iterator[Pair]:
    """One biased client of three minus none."""
    for algorithm in ALGORITHMS:
        wanted = {"fed_alg": algorithm, "aggregation": "host"}
        clean, third = (pick(arms, [], scenario=name, **wanted) for name in ("3C", "1B2C"))
        if clean and third:
            yield Pair(algorithm, clean, third)


def _mixed(arms: Sequence[Arm], variant: str) -> Iterator[Pair]:
    """Mixed minus segregated rows."""
    for algorithm in dict.fromkeys(arm.fed_alg for arm in arms):
        for names in MIXED:
            wanted = {"fed_alg": algorithm, "aggregation": "host"}
            segregated, mixed = (pick(arms, [], scenario=name, **wanted) for name in names)
            if segregated and mixed:
                yield Pair(f"{algorithm} {names[0]}", segregated, mixed)


def _bama(arms: Sequence[Arm], variant: str) -> Iterator[Pair]:
    """With BAMA minus without, for every algorithm and scenario that has both."""
    for scenario in BIASED:
        for algorithm in dict.fromkeys(arm.fed_alg for arm in arms):
            wanted = {"fed_alg": algorithm, "scenario": scenario}
            without = pick(arms, [], aggregation="host", **wanted)
            with_bama = pick(arms, [], aggregation="bama", weighting=variant, **wanted)
            if without and with_bama:
                yield Pair(algorithm, without, with_bama)


_CLAIMS: dict[str, tuple[Callable[[Sequence[Arm], str], Iterator[Pair]], int]] = {
    "fedadam_lowest": (_fedadam, -1),
    "third_biased_matters": (_third, 1),
    "mixed_higher": (_mixed, 1),
    "bama_reduces": (_bama, -1),
}
"""Id -> the pairs that decide it, and the sign of their difference if the claim holds."""
