"""The tables beside the paper's three: mixed against segregated rows, participation, and BAMA's two parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedbias_plugin.report.arm_choice import (
    PARTICIPATION,
    SCENARIO,
    WEIGHTING,
    has_default_strength,
    models,
    paper_arms,
    pick,
    pick_pair,
    plain_arms,
)
from fedbias_plugin.report.measures import MASS, WEIGHT_ON_POISONED
from fedbias_plugin.report.paper import Paper
from fedbias_plugin.report.study import Arm, Study
from fedbias_plugin.report.table_arms import Entry, arm_table
from fedbias_plugin.report.table_model import Table
from fedbias_plugin.report.table_paper import DELTA_CAPTION, TITLES

MIXED = (("1B2C", "mix-1B2C"), ("2B1C", "mix-2B1C"))


def figure1(study: Study, paper: Paper | None) -> Table | None:
    """The same number of biased rows held by few clients and mixed into all."""
    arms = [arm for arm in paper_arms(study) if arm.aggregation == "plain"]
    entries, notes = [], list[str]()
    for model in models(arms):
        for algorithm in dict.fromkeys(arm.fed_alg for arm in arms):
            for segregated, mixed in MIXED:
                wanted = {"model": model, "fed_alg": algorithm}
                sides = ({**wanted, "scenario": name} for name in (segregated, mixed))
                pair = pick_pair(arms, notes, SCENARIO, *sides)
                if pair:
                    group, title = f"{model} {algorithm} {segregated}", TITLES.get(algorithm, algorithm)
                    entries.append(Entry((model, title, segregated), pair[0], group, varied=SCENARIO))
                    entries.append(Entry((model, title, mixed), pair[1], group, pair[0], varied=SCENARIO))
    if not entries:
        return None
    table = Table(
        "figure1",
        "Segregated and mixed biased rows (the paper's Figure 1)",
        f"{DELTA_CAPTION} Difference: mixed minus segregated, the same algorithm and seeds.",
        *(("model", "algorithm", "scenario"), (), (), tuple(notes)),
    )
    return arm_table(table, entries, None)


def participation(study: Study, paper: Paper | None) -> Table | None:
    """All clients, or some of more, each round; None when all clients take part everywhere."""
    groups: dict[tuple[str, ...], list[Arm]] = {}
    for arm in plain_arms(study):
        if arm.num_clients and has_default_strength(arm):
            key = (arm.model, arm.fed_alg, arm.scenario, arm.aggregation, arm.weighting)
            groups.setdefault(key, []).append(arm)
    notes: list[str] = []
    entries = [entry for arms in groups.values() for entry in _participation_entries(arms, notes)]
    if not entries:
        return None
    table = Table(
        "participation",
        "Clients that take part in a round",
        f"{DELTA_CAPTION} Difference: minus the first row of the group, the same seeds. Every client of more than the "
        "scenario names holds clean rows.",
        *(("model", "algorithm", "scenario", "aggregation", "clients a round"), (), (), tuple(notes)),
    )
    return arm_table(table, entries, None, extras=(WEIGHT_ON_POISONED,))


def _participation_entries(arms: Sequence[Arm], notes: list[str]) -> Iterator[Entry]:
    """The arms of one group by clients, if at least one of several does not use all."""
    kinds = sorted({(arm.num_clients or 0, arm.sample_clients or 0) for arm in arms})
    if len(kinds) < 2 or all(clients == sampled for clients, sampled in kinds):
        return
    first: Arm | None = None
    for clients, sampled in kinds:
        arm = pick(arms, notes, PARTICIPATION, beside=first, num_clients=clients, sample_clients=sampled)
        if arm is None:
            continue
        labels = (arm.model, TITLES.get(arm.fed_alg, arm.fed_alg), arm.scenario, _aggregation(arm))
        yield Entry((*labels, f"{sampled} of {clients}"), arm, " ".join(labels), first, varied=PARTICIPATION)
        first = first or arm


def strength(study: Study, paper: Paper | None) -> Table | None:
    """BAMA by alpha, lambda and weighting; None unless one of them was varied."""
    groups: dict[tuple[str, ...], list[Arm]] = {}
    for arm in paper_arms(study):
        groups.setdefault((arm.model, arm.fed_alg, arm.scenario), []).append(arm)
    notes: list[str] = []
    entries = [entry for arms in groups.values() for entry in _strength_entries(arms, notes)]
    if not entries:
        return None
    table = Table(
        "lambda",
        "BAMA's alpha and lambda",
        f"{DELTA_CAPTION} Difference: minus the same algorithm without BAMA, the same seeds. A client 1/lambda "
        "points of bias score worse weighs 1/e.",
        *(("model", "algorithm", "scenario", "aggregation", "alpha", "lambda"), (), (), tuple(notes)),
    )
    return arm_table(table, entries, None, extras=(WEIGHT_ON_POISONED, MASS))


def _strength_entries(arms: Sequence[Arm], notes: list[str]) -> Iterator[Entry]:
    bama, hosts = ([arm for arm in arms if arm.aggregation == name] for name in ("bama", "plain"))
    if len({_alpha_lambda(arm) for arm in bama}) < 2:
        return
    without = pick([*bama, *hosts], notes, WEIGHTING, aggregation="plain")
    for arm in [*([without] if without else []), *sorted(bama, key=lambda arm: (arm.weighting, _alpha_lambda(arm)))]:
        labels = (arm.model, TITLES.get(arm.fed_alg, arm.fed_alg), arm.scenario, _aggregation(arm))
        values = [f"{value:g}" for value in _alpha_lambda(arm)] if arm is not without else ["", ""]
        reference = without if arm is not without else None
        yield Entry((*labels, *values), arm, " ".join(labels[:3]), reference, varied=WEIGHTING)


def _alpha_lambda(arm: Arm) -> tuple[float, float]:
    """Alpha and lambda, NaN-free: settings that are no numbers count as 0."""
    values = (arm.settings.get(name) for name in ("bama_alpha", "bama_lambda"))
    alpha, strength = (float(value) if isinstance(value, (int, float)) else 0.0 for value in values)
    return alpha, strength


def _aggregation(arm: Arm) -> str:
    return f"{arm.aggregation} ({arm.weighting})" if arm.weighting else arm.aggregation
