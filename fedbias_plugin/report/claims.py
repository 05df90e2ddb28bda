"""The findings of the paper's abstract, each held against the study's runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from fedbias_plugin.report.arm_choice import (
    ALGORITHM,
    SCENARIO,
    WEIGHTING,
    difference_note,
    models,
    paper_arms,
    pick_pair,
)
from fedbias_plugin.report.measures import (
    CROWS,
    DELTA_CROWS,
    DELTA_SS,
    LMS,
    SS,
    Measure,
    by_seed,
    is_incoherent,
    of_runs,
)
from fedbias_plugin.report.paper import ALGORITHMS, Paper
from fedbias_plugin.report.statistics_over_seeds import Spread, spread
from fedbias_plugin.report.study import Arm, SeedKey, Study
from fedbias_plugin.report.table_arms import same_items
from fedbias_plugin.report.table_model import Cell, Column, Row, Table, spread_cell
from fedbias_plugin.report.table_studies import MIXED
from fedbias_plugin.scales import UNBIASED

AGREES, DISAGREES, UNTOLD = "agrees", "disagrees", "cannot be told"
BIASED = ("1B2C", "2B1C", "3B", "mix-1B2C", "mix-2B1C")
RULE = (
    "A finding is tested seed by seed on the difference in Delta, as a mean over its pairs of arms, which agree in all "
    "other settings; that of a third of biased data on the difference in the score (up: towards the stereotype). It "
    "agrees when the 95% t interval lies on its side of 0 and no part of the pairs points the other way; it disagrees "
    "when the interval lies on the other side. A third of biased data cannot disagree: no interval shows that there is "
    "no influence. One benchmark alone decides only where the mean of the other does not point the other way, has an "
    "LMS below 60 or was not measured, and the verdict names it. All else cannot be told: fewer than two seeds; for "
    "SS, an LMS below 60; for Delta, an arm whose mean score is below 50, where a larger Delta is more "
    "anti-stereotype, not more of the stereotype; benchmarks that contradict each other. Intervals are not corrected "
    "for their number."
)
BENCHMARKS = {"crows_pairs": "CrowS-Pairs", "stereoset": "StereoSet"}
SCORES = {DELTA_CROWS: CROWS, DELTA_SS: SS}


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
        opposes: it tells nothing by itself, but points against what the other benchmark says.
    """

    verdict: str
    reason: str
    difference: Spread | None = None
    is_unsound: bool = False
    opposes: bool = False


_NOTHING = MeasureVerdict(UNTOLD, "no pair of arms agrees in all other settings.")


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
        only: name of the benchmark that decides alone; '' where both do or none does.
        notes: which arms were chosen, and which pairs are not compared.
    """

    claim: str
    statement: str
    model: str
    variant: str
    verdict: str
    crows: MeasureVerdict
    ss: MeasureVerdict
    pairs: int
    only: str = ""
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The verdict as the report words it: ``agrees on CrowS-Pairs only``."""
        return f"{self.verdict} on {self.only} only" if self.only else self.verdict

    @property
    def why(self) -> str:
        """The numbers of both benchmarks."""
        return f"CrowS-Pairs: {self.crows.reason} StereoSet: {self.ss.reason}"


@dataclass(frozen=True)
class Claim:
    """What decides a finding.

    Attributes:
        find: its pairs of arms, given arms of one model, the variant, and where to put notes.
        varied: the settings in which the arms of a pair may differ.
        sign: of the difference if the finding holds.
        measures: of which the difference is, CrowS-Pairs' and StereoSet's.
        can_disagree: whether a difference of the other sign contradicts it.
    """

    find: Callable[[Sequence[Arm], str, list[str]], Iterator[Pair]]
    varied: Collection[str]
    sign: int
    measures: tuple[Measure, Measure] = (DELTA_CROWS, DELTA_SS)
    can_disagree: bool = True


def judge_claims(study: Study, paper: Paper) -> list[Judgement]:
    """Every claim the study has pairs of arms for, by model."""
    arms = paper_arms(study)
    result = []
    for name, claim in _CLAIMS.items():
        for model in models(arms):
            own = [arm for arm in arms if arm.model == model]
            for variant in _variants(name, own):
                notes: list[str] = []
                pairs = list(claim.find(own, variant, notes))
                if pairs:
                    empty = Judgement(name, paper.claims[name], model, variant, UNTOLD, _NOTHING, _NOTHING, 0)
                    result.append(_judge(empty, claim, pairs, notes))
    return result


def claims(study: Study, paper: Paper | None) -> Table | None:
    """The judgements as a table; None without any."""
    found = judge_claims(study, paper) if paper else []
    if not found:
        return None
    rows = []
    for one in found:
        variant = f" ({one.variant})" if one.variant else ""
        cells = [Cell(text=one.shown)]
        for part in (one.crows, one.ss):
            cells.append(replace(spread_cell(part.difference, is_signed=True), is_unsound=part.is_unsound))
        cells.append(Cell(text=one.why))
        rows.append(Row((f"{one.statement}{variant}", one.model), tuple(cells), one.claim))
    columns = (
        Column("verdict", "verdict"),
        *(Column(title, f"{name}_difference", "difference") for name, title in BENCHMARKS.items()),
        Column("why", "why"),
    )
    caption = (
        "The findings of the paper's abstract, in our words, and what these runs say about them. Differences are in "
        "Delta, percentage points; of a third of biased data in the score."
    )
    stub = ("finding", "model")
    notes = (RULE, *dict.fromkeys(note for one in found for note in one.notes))
    return Table("claims", "The paper's findings", caption, stub, columns, tuple(rows), notes)


def _judge(empty: Judgement, claim: Claim, pairs: Sequence[Pair], notes: list[str]) -> Judgement:
    """``empty`` with the verdict of those of ``pairs`` that can be compared."""
    said = [difference_note(pair.reference, pair.arm, claim.varied) for pair in pairs]
    notes += [note for note in said if note]
    kept = [pair for pair, note in zip(pairs, said, strict=True) if not note]
    if not kept:
        return replace(empty, notes=tuple(notes))
    crows, stereo = (_measure_verdict(kept, measure, claim) for measure in claim.measures)
    crows, stereo = _opposed(crows, stereo), _opposed(stereo, crows)
    told = {part.verdict for part in (crows, stereo)} - {UNTOLD}
    is_opposed = any(part.opposes for part in (crows, stereo))
    verdict = told.pop() if len(told) == 1 and not is_opposed else UNTOLD
    deciding = [
        name for name, part in zip(BENCHMARKS.values(), (crows, stereo), strict=True) if part.verdict == verdict
    ]
    only = deciding[0] if verdict != UNTOLD and len(deciding) == 1 else ""
    return replace(empty, verdict=verdict, crows=crows, ss=stereo, pairs=len(kept), only=only, notes=tuple(notes))


def _opposed(part: MeasureVerdict, other: MeasureVerdict) -> MeasureVerdict:
    """``part`` marked where it decides nothing itself and its mean points against what ``other`` says."""
    if part.verdict != UNTOLD or other.verdict == UNTOLD or part.is_unsound:
        return part
    if part.difference is None or other.difference is None or part.difference.mean * other.difference.mean >= 0:
        return part
    return replace(part, opposes=True, reason=f"{part.reason} It points the other way.")


def _measure_verdict(pairs: Sequence[Pair], measure: Measure, claim: Claim) -> MeasureVerdict:
    sign, differences = claim.sign, [_differences(pair, measure) for pair in pairs]
    seeds = set.intersection(*(set(found) for found in differences))
    pooled = spread(sum(found[seed] for found in differences) / len(differences) for seed in sorted(seeds))
    if measure.benchmark == "stereoset" and any(
        is_incoherent(of_runs(arm, LMS)) for pair in pairs for arm in (pair.reference, pair.arm)
    ):
        return MeasureVerdict(UNTOLD, "LMS below 60, so that SS says little.", pooled, True)
    if pooled is None:
        return MeasureVerdict(UNTOLD, "no seed was measured in all of its arms.")
    points = _points(pooled, measure, [by_seed(pair.reference, measure)[seed] for pair in pairs for seed in seeds])
    below = _below(pairs, measure)
    if below:
        return MeasureVerdict(UNTOLD, f"{points}, but {below}.", pooled)
    if pooled.ci95 is None:
        return MeasureVerdict(UNTOLD, f"{points} in one seed, which has no interval.", pooled)
    low, high = pooled.ci95
    if low <= 0 <= high:
        return MeasureVerdict(UNTOLD, f"{points}, an interval around 0.", pooled)
    if not pooled.sd:
        return MeasureVerdict(UNTOLD, f"{points} in every seed alike: the seeds changed nothing.", pooled)
    if sign * pooled.mean < 0:
        if claim.can_disagree:
            return MeasureVerdict(DISAGREES, f"{points}.", pooled)
        return MeasureVerdict(UNTOLD, f"{points}, an influence away from the stereotype.", pooled)
    against = list(_parts_against(pairs, differences, seeds, sign))
    if against:
        return MeasureVerdict(UNTOLD, f"{points}, but the other way for {', '.join(against)}.", pooled)
    return MeasureVerdict(AGREES, f"{points}.", pooled)


def _below(pairs: Sequence[Pair], measure: Measure) -> str:
    """In how many pairs a Delta is not what the finding means, because a mean score is below 50; '' for none."""
    if measure not in SCORES:
        return ""
    means = [[of_runs(arm, SCORES[measure]) for arm in (pair.reference, pair.arm)] for pair in pairs]
    below = sum(any(mean is not None and mean.mean < UNBIASED for mean in both) for both in means)
    if not below:
        return ""
    return (
        f"scores lie below 50 in {below} of {len(pairs)} pairs: there a larger Delta is more anti-stereotype, not more "
        "of the stereotype"
    )


def _differences(pair: Pair, measure: Measure) -> dict[SeedKey, float]:
    """Seeds -> arm minus reference, of runs on the very same items."""
    before, after = by_seed(pair.reference, measure), by_seed(pair.arm, measure)
    shared = before.keys() & after.keys()
    runs = pair.reference.by_seed, pair.arm.by_seed
    return {seed: after[seed] - before[seed] for seed in shared if same_items(runs[0][seed], runs[1][seed], measure)}


def _parts_against(
    pairs: Sequence[Pair], differences: Sequence[dict[SeedKey, float]], seeds: set[SeedKey], sign: int
) -> Iterator[str]:
    """The parts whose mean difference has not the sign of the claim."""
    for part in dict.fromkeys(pair.part for pair in pairs):
        values = [
            found[seed] for pair, found in zip(pairs, differences, strict=True) if pair.part == part for seed in seeds
        ]
        if sign * sum(values) <= 0:
            yield part


def _points(value: Spread, measure: Measure, references: Sequence[float]) -> str:
    """The difference, its interval, and its share of the references' mean Delta."""
    interval = f" [{value.ci95[0]:+.2f}, {value.ci95[1]:+.2f}]" if value.ci95 else ""
    if measure not in SCORES:
        return f"{value.mean:+.2f}{interval} points of score"
    before = sum(references) / len(references)
    share = f" ({100 * value.mean / before:+.0f}% of {before:.2f})" if before else ""
    return f"{value.mean:+.2f}{interval} points{share}"


def _variants(claim: str, arms: Sequence[Arm]) -> list[str]:
    """BAMA is judged by weighting, the paper's first."""
    if claim != "bama_reduces":
        return [""]
    return sorted({arm.weighting for arm in arms if arm.weighting}, reverse=True)


def _fedadam(arms: Sequence[Arm], variant: str, notes: list[str]) -> Iterator[Pair]:
    """FedAdam minus every other algorithm of Table 1, on every scenario with biased rows."""
    for scenario in BIASED:
        for algorithm in ALGORITHMS:
            wanted = {"scenario": scenario, "aggregation": "plain"}
            sides = ({**wanted, "fed_alg": name} for name in (algorithm, "fedadam"))
            if found := pick_pair(arms, notes, ALGORITHM, *sides) if algorithm != "fedadam" else None:
                yield Pair(algorithm, *found)


def _third(arms: Sequence[Arm], variant: str, notes: list[str]) -> Iterator[Pair]:
    """One biased client of three minus none."""
    for algorithm in ALGORITHMS:
        wanted = {"fed_alg": algorithm, "aggregation": "plain"}
        sides = ({**wanted, "scenario": name} for name in ("3C", "1B2C"))
        if found := pick_pair(arms, notes, SCENARIO, *sides):
            yield Pair(algorithm, *found)


def _mixed(arms: Sequence[Arm], variant: str, notes: list[str]) -> Iterator[Pair]:
    """Mixed minus segregated rows."""
    for algorithm in dict.fromkeys(arm.fed_alg for arm in arms):
        for names in MIXED:
            wanted = {"fed_alg": algorithm, "aggregation": "plain"}
            if found := pick_pair(arms, notes, SCENARIO, *({**wanted, "scenario": name} for name in names)):
                yield Pair(f"{algorithm} {names[0]}", *found)


def _bama(arms: Sequence[Arm], variant: str, notes: list[str]) -> Iterator[Pair]:
    """With BAMA minus without, for every algorithm and scenario that has both."""
    for scenario in BIASED:
        for algorithm in dict.fromkeys(arm.fed_alg for arm in arms):
            wanted = {"fed_alg": algorithm, "scenario": scenario}
            with_bama = {**wanted, "aggregation": "bama", "weighting": variant}
            if found := pick_pair(arms, notes, WEIGHTING, {**wanted, "aggregation": "plain"}, with_bama):
                yield Pair(algorithm, *found)


_CLAIMS = {
    "fedadam_lowest": Claim(_fedadam, ALGORITHM, -1),
    "third_biased_matters": Claim(_third, SCENARIO, 1, (CROWS, SS), can_disagree=False),
    "mixed_higher": Claim(_mixed, SCENARIO, 1),
    "bama_reduces": Claim(_bama, WEIGHTING, -1),
}
