"""Declared comparisons: two arms that differ in one thing, paired by seed, tested, and judged against a claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedbias_plugin.study.comparable import conflicts, named, setting_conflicts
from fedbias_plugin.study.frame import Arm, Study
from fedbias_plugin.study.runs import seed_text
from fedbias_plugin.study.settings import differences, one_line, unusual
from fedbias_plugin.study.statistics import correct
from fedbias_plugin.study.study_file import Comparison, StudyFile, fits
from fedbias_plugin.study.verdicts import (
    CONTRADICTED,
    DIFFERENT,
    DISAGREE,
    NOT_SIGNIFICANT,
    NOT_TESTABLE,
    OVERCORRECTED,
    PARTLY,
    SUPPORTED,
    Outcome,
    Pair,
    Verdict,
    judge,
)

NAMES = {
    "clients": "{} clients",
    "strength": "alpha x lambda {}",
    "dp_epsilon": "epsilon {}",
    "dp_max_grad_norm": "C {}",
    "cda_ratio": "CDA {}",
}
"""How the value of a fact is shown where it does not speak for itself."""


@dataclass(frozen=True)
class Answer:
    """A declared comparison with its pairs.

    Attributes:
        comparison: as it was declared.
        pairs: of arms, at least one.
        pooled: a mean over the pairs, seed by seed, for every metric; p is corrected over the whole study.
        limits: across how few models, algorithms and so on it was tested; '' where across enough.
        notes: which arms were chosen, and which pairs or seeds are not compared and why.
    """

    comparison: Comparison
    pairs: tuple[Pair, ...]
    pooled: tuple[Outcome, ...]
    limits: str = ""
    notes: tuple[str, ...] = ()

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """One a metric."""
        return [judge(self.comparison, outcome, self.pairs) for outcome in self.pooled]

    @property
    def word(self) -> str:
        """The verdicts as one: a metric that decides wins over those that do not; two that disagree are told."""
        words = {verdict.word for verdict in self.verdicts}
        if CONTRADICTED in words and words & {SUPPORTED, PARTLY}:
            return DISAGREE
        ranked = (CONTRADICTED, OVERCORRECTED, PARTLY, SUPPORTED, DIFFERENT, NOT_SIGNIFICANT, NOT_TESTABLE)
        return next(word for word in ranked if word in words)


def answer_all(study: Study, file: StudyFile) -> tuple[list[Answer], list[str]]:
    """The declared comparisons that the study has pairs of arms for, and why the others have none."""
    answers, silent = [], []
    for comparison in file.comparisons:
        measured = {*study.metrics, *(name for name in study.finals if "/" in name)}
        metrics = [name for name in dict.fromkeys(comparison.metric) if name in measured]
        notes: list[str] = []
        pairs = tuple(
            Pair(
                one, other, name, {metric: _outcome(study, comparison, metric, one, other, notes) for metric in metrics}
            )
            for name, one, other in _pairs(study, comparison, file, notes)
        )
        notes = list(dict.fromkeys(notes))
        if not pairs or not metrics:
            silent += notes
            continue
        correct(outcome.tested for pair in pairs for outcome in pair.outcomes.values())
        pooled = tuple(_pooled(metric, pairs) for metric in metrics)
        answers.append(Answer(comparison, pairs, pooled, _limits(comparison, pairs), tuple(notes)))
    correct(outcome.tested for answer in answers for outcome in answer.pooled)
    return answers, silent


def _pairs(study: Study, comparison: Comparison, file: StudyFile, notes: list[str]) -> Iterator[tuple[str, Arm, Arm]]:
    """Name, reference and arm of every pair: one for every value of ``within``, ``from`` and ``to`` that has one."""
    varied = comparison.varied

    def rank(pair: tuple[Arm, Arm]) -> tuple[bool, int, int]:
        """Pairs that agree first, then default settings, then most seeds in common."""
        one, other = pair
        shared = len(one.by_seed.keys() & other.by_seed.keys())
        usual = -unusual(one.runs[0]) - unusual(other.runs[0])
        return not differences(one.runs[0], other.runs[0], varied), usual, shared

    found: list[tuple[Arm, Arm]] = []
    targets = _grouped(study.arms, comparison, comparison.to)
    for (within, _), references in _grouped(study.arms, comparison, comparison.from_).items():
        for arms in (arms for (same, _), arms in targets.items() if same == within):
            pairs = [(one, other) for one in references for other in arms if one is not other]
            if not pairs:
                continue
            best = max(pairs, key=rank)
            for arm, others in zip(best, (references, arms), strict=True):
                if len(others) > 1:
                    more = ", ".join(other.label for other in others if other is not arm)
                    notes.append(f"Of {len(others)} arms that fit, {arm.label} is taken; not taken: {more}.")
            if clash := setting_conflicts(best[0].runs[0], best[1].runs[0], varied):
                notes.append(f"Not compared: {best[0].label} and {best[1].label} differ in {named(clash)}.")
            else:
                found.append(best)
    sorted_by = (*comparison.within, *comparison.to)
    found.sort(key=lambda pair: file.sort_key(sorted_by, [pair[1].facts.get(name) for name in sorted_by]))
    yield from zip(_pair_names(found, comparison, file), *zip(*found, strict=True), strict=True) if found else ()


def _pair_names(pairs: Sequence[tuple[Arm, Arm]], comparison: Comparison, file: StudyFile) -> Iterator[str]:
    """Every pair by those of its facts that are not the same in all of them."""
    sides = ((1, comparison.within), (1, tuple(comparison.to)), (0, tuple(comparison.from_)))
    varying = [
        [(side, name) for name in names if len({str(pair[side].facts.get(name)) for pair in pairs}) > 1]
        for side, names in sides
    ]
    for pair in pairs:
        inside, to, against = (
            [_value(pair[side].facts.get(name), name, file) for side, name in own] for own in varying
        )
        words = [*inside, *to, *(["against", *against] if against else [])]
        yield one_line(" ".join(filter(None, words))) or pair[1].label


def _grouped(
    arms: Iterable[Arm], comparison: Comparison, side: Mapping[str, object]
) -> dict[tuple[tuple[Any, ...], ...], list[Arm]]:
    """Arms of one side by the values of ``within`` and of the side's own facts."""
    groups: dict[tuple[tuple[Any, ...], ...], list[Arm]] = {}
    for arm in arms:
        if arm.facts and fits(arm.facts, {**comparison.where, **side}):
            key = tuple(tuple(arm.facts.get(name) for name in names) for names in (comparison.within, side))
            groups.setdefault(key, []).append(arm)
    return groups


def _value(value: object, name: str, file: StudyFile) -> str:
    return NAMES.get(name, "{}").format(file.names.get(value, value)) if value not in (None, "") else ""


def _outcome(study: Study, comparison: Comparison, metric: str, reference: Arm, arm: Arm, notes: list[str]) -> Outcome:
    """Of the seeds whose two runs can be compared by ``metric``; ``notes`` say why others cannot."""
    before, after, names = reference.by_seed, arm.by_seed, f"{arm.label} and {reference.label}"
    if not before.keys() & after.keys():
        notes.append(f"Not compared, no seed in common: {names}.")
    kept = []
    for seed in (seed for seed in before if seed in after):
        found = conflicts(before[seed], after[seed], comparison.varied)
        if clash := [one for one in found if one.metric in (None, metric.partition("/")[0])]:
            notes.append(f"Not compared, {names}, seed {seed_text(seed)}: they differ in {named(clash)}.")
        else:
            kept.append(seed)
    one, other = (study.by_seed(side, metric) for side in (reference, arm))
    kept = [seed for seed in kept if seed in one and seed in other]
    values = {seed: one[seed] for seed in kept}, {seed: other[seed] for seed in kept}
    noise = max(study.noise(side, metric) for side in (reference, arm))
    return Outcome(metric, values, noise, any(study.is_unsound(side, metric) for side in (reference, arm)))


def _pooled(metric: str, pairs: Sequence[Pair]) -> Outcome:
    """A mean over the pairs for every seed that all of them have."""
    own = [outcome for pair in pairs if (outcome := pair.outcomes[metric]).tested is not None]
    seeds = sorted(set.intersection(*(set(outcome.values[0]) for outcome in own))) if own else []
    before, after = ({seed: sum(one.values[side][seed] for one in own) / len(own) for seed in seeds} for side in (0, 1))
    noise = max((outcome.noise for outcome in own), default=0.0)
    return Outcome(metric, (before, after), noise, any(outcome.is_unsound for outcome in own))


def _limits(comparison: Comparison, pairs: Sequence[Pair]) -> str:
    """Of which facts there is one value only, although the claim is across several."""
    words = {"training": "algorithm", "fed_alg": "algorithm"}
    single = {}
    for name in comparison.across:
        values = {str(pair.arm.facts.get(name)) for pair in pairs if any(one.tested for one in pair.outcomes.values())}
        if len(values) == 1:
            single[words.get(name, name.replace("_", " "))] = values.pop()
    return " and ".join(f"one {what} ({one_line(value)})" for what, value in single.items())
