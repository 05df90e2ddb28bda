"""The figures of a study: declared differences, metrics by round and by dose, clients, categories, holdings, cost."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.study.bars import categories, cost, forest, holdings
from fedbias_plugin.study.comparisons import NAMES, Answer
from fedbias_plugin.study.drawing import MOST_LINES, Figure, Look, figure, look_at, pieces
from fedbias_plugin.study.frame import Arm, Study
from fedbias_plugin.study.lines import Line, line_panel, mean_line
from fedbias_plugin.study.settings import listed
from fedbias_plugin.study.study_file import BYTES, DoseFigure, StudyFile, fits, placed

KINDS = {"poisoned": Look("#D55E00", "-", "^"), "clean": Look("#0072B2", "-", "o")}
PANEL_FACTS = ("model", "training", "clients", "attack", "classifier", "client_samples", "learning_rate", "num_rounds")
PLAIN_FACTS = ("model", "training", "scenario", "aggregation", "weighting")
"""Facts in which arms of one panel agree, and those whose value is named by itself."""
WIDE = 16
"""A logarithmic axis from so large a ratio on."""
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("bytes", 1))


def draw_figures(study: Study, file: StudyFile, answers: Sequence[Answer]) -> list[Figure]:
    """Every figure that the study has data for; the declared differences first."""
    return [
        *forest(answers),
        *(one for metric in study.metrics for one in curves(study, metric)),
        *(one for name in beside_by_round(study) for one in curves(study, name)),
        *(one for spec in file.figures if spec.x == BYTES for one in against_bytes(study, spec)),
        *(one for spec in file.figures if spec.x != BYTES for one in dose(study, file, spec)),
        *clients(study, "weight", "Client weights by round", "client weight"),
        *clients(study, "bias_score", "Bias score b_i of the clients by round", "b_i (points)"),
        *(one for metric in study.metrics for one in own_rows(study, metric)),
        *tradeoff(study),
        *categories(study),
        *holdings(study),
        *cost(study),
    ]


def beside_by_round(study: Study) -> list[str]:
    """The numbers beside metrics that have a figure by round."""
    return [f"{name}/{part}" for name in study.metrics for part in metric_class(name).by_round]


def _axis_label(metric: str) -> str:
    return textwrap.fill(metric_class(metric).short or metric_class(metric).title, 32)


def curves(study: Study, metric: str) -> list[Figure]:
    """A metric by round: a line an arm, its mean over seeds, in a band from the lowest to the highest seed."""
    own, ideal = study.by_round(metric).dropna(subset=["value"]).reset_index(), metric_class(metric).ideal
    if own.empty:
        return []
    points = {label: part.assign(x=part["round"], y=part["value"]) for label, part in own.groupby("arm")}
    arms = [arm for arm in study.arms if arm.label in points and points[arm.label]["round"].nunique() > 1]
    low, high = own["value"].min(), own["value"].max()
    if ideal is not None:
        reach = 1.08 * max(abs(low - ideal), abs(high - ideal), 5.0 if ideal == 50.0 else 1e-9)
        low, high = ideal - reach, ideal + reach
    margin = 0.0 if ideal is not None else 0.06 * max(high - low, 0.01)
    panels = []
    for title, names in line_panels(arms):
        lines = []
        for name, arm in names.items():
            lms = study.spread(arm, f"{metric}/lms")
            n = f"{len(arm.runs)}, LMS {lms.mean:.0f}" if lms else str(len(arm.runs))  # SS says nothing without it
            lines.append(mean_line(name, points[arm.label], n, look_at(arm.place)))
        limits = {"ylim": (low - margin, high + margin), "ylabel": _axis_label(metric)}
        panels.append(line_panel(title, lines, ideal, xlabel="round", **limits))
    caption = "Line: mean over seeds; band: lowest to highest seed; n: seeds. Round 0 is the untouched model."
    if ideal is not None:
        caption += f" Dashed: {ideal:g}, {'no preference' if ideal == 50.0 else 'the ideal'}."
    title = f"{metric_class(metric).title} by round"
    return figure(f"{metric.replace('/', '_')}_by_round", title[0].upper() + title[1:], caption, panels)


def line_panels(arms: Sequence[Arm]) -> Iterator[tuple[str, dict[str, Arm]]]:
    """Titles and lines (name -> arm) of panels with at most five lines; arms of one model and algorithm share them."""
    groups: dict[tuple[Any, ...], list[Arm]] = {}
    for arm in arms:
        groups.setdefault(tuple(str(arm.facts.get(name)) for name in PANEL_FACTS), []).append(arm)
    varying = [name for place, name in enumerate(PANEL_FACTS) if len({key[place] for key in groups}) > 1]
    for own in groups.values():
        head = own[0].facts
        title = " ".join(_fact_text(head, name) for name in dict.fromkeys(("training", *varying)) if head.get(name))
        by_scenario: dict[str, list[Arm]] = {"": own}
        if len(own) > MOST_LINES:
            parts: dict[str, list[Arm]] = {}
            for arm in own:
                parts.setdefault(str(arm.facts.get("scenario")), []).append(arm)
            alone = [arm for part in parts.values() if len(part) == 1 for arm in part]
            by_scenario = {name: part for name, part in parts.items() if len(part) > 1} | ({"": alone} if alone else {})
        for scenario, part in by_scenario.items():
            for lines in pieces(part, MOST_LINES):
                yield f"{title} {scenario}".strip() or "All runs", _line_names(lines, with_scenario=not scenario)


def _line_names(arms: Sequence[Arm], *, with_scenario: bool) -> dict[str, Arm]:
    """Rule of every arm, with what of its label tells it from others of that rule."""
    by_name: dict[str, list[Arm]] = {}
    for arm in arms:
        weighting = f" ({arm.facts['weighting']})" if arm.facts.get("weighting") else ""
        scenario = f"{arm.facts.get('scenario') or ''} " if with_scenario else ""
        name = f"{scenario}{arm.facts.get('aggregation')}{weighting}".strip()
        is_told = arm.facts.get("training") and arm.place is None
        by_name.setdefault(name if is_told else arm.label, []).append(arm)
    names = {}
    for name, own in by_name.items():
        words = [[word.rstrip(",") for word in arm.label.split()] for arm in own]
        shared = set.intersection(*map(set, words))
        for arm, told in zip(own, words, strict=True):
            names[" ".join([name, *(word for word in told if word not in shared)])] = arm
    return {name: arm for arm in arms for name, one in names.items() if one is arm}


def _fact_text(facts: Any, name: str) -> str:
    value = facts.get(name)
    return str(value) if name in PLAIN_FACTS else NAMES.get(name, f"{name}={{}}").format(value)


def dose(study: Study, file: StudyFile, spec: DoseFigure) -> list[Figure]:
    """Metrics (those with an ideal) against a fact of arms, in the last measured round: mean and every seed."""
    arms = [arm for arm in study.arms if arm.facts.get(spec.x) is not None and fits(arm.facts, spec.where)]
    order = file.order.get(spec.x, ())
    values = sorted({arm.facts[spec.x] for arm in arms}, key=lambda value: placed(value, order))
    places = {value: value if isinstance(value, int | float) else place for place, value in enumerate(values)}
    is_wide = (
        bool(places)
        and all(place > 0 for place in places.values())
        and max(places.values()) >= WIDE * min(places.values())
    )
    scale = "log" if is_wide else "linear"
    varying = [name for name in spec.lines if len({str(arm.facts.get(name)) for arm in arms}) > 1]
    groups: dict[str, dict[Any, Arm]] = {}
    hidden = []
    for arm in arms:
        told = [(file.names.get(fact, fact), arm.facts.get(fact)) for fact in varying]
        name = (
            " ".join(f"{fact}={one}" if type(one) in (int, float) else str(one) for fact, one in told if one) or "all"
        )
        if groups.setdefault(name, {}).setdefault(arm.facts[spec.x], arm) is not arm:
            hidden.append(arm.label)
    panels = []
    for metric in spec.metric or study.aimed:
        lines = []
        for name, own in groups.items():
            shown = [value for value in values if value in own and study.by_seed(own[value], metric)]
            seeds = [list(study.by_seed(own[value], metric).values()) for value in shown]
            dots = [([places[value]], [one]) for value, each in zip(shown, seeds, strict=True) for one in each]
            n = "-".join(dict.fromkeys(str(len(each)) for each in seeds))
            if len(shown) > 1:
                means = [sum(each) / len(each) for each in seeds]
                lines.append(Line(name, [places[value] for value in shown], means, n, threads=dots))
        ticks = {
            "xticks": list(places.values()),
            "xticklabels": [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values],
        }
        x = NAMES.get(spec.x, spec.x.replace("_", " ")).replace("{}", "").strip()
        labels = {"xscale": scale, "xlabel": x, "ylabel": _axis_label(metric)}
        for part in pieces(lines, MOST_LINES):
            panels.append(line_panel(metric_class(metric).title, part, metric_class(metric).ideal, **labels, **ticks))
    caption = "Line: mean over seeds; dot: a seed; n: seeds of an arm. Dashed: the ideal."
    caption += f" Not shown, at the place of another arm: {listed(hidden, MOST_LINES)}." if hidden else ""
    return figure(spec.id, spec.title, caption, panels)


def against_bytes(study: Study, spec: DoseFigure) -> list[Figure]:
    """Metrics (y) against the bytes that all clients had sent and received by then (x): a line an arm, a point a round.

    Without metrics in ``spec``: those with an ideal, and what others show by round beside their value.
    """
    sent = study.by_round("payload/total")["value"].dropna()
    if sent.empty:
        return []
    unit, size = next((name, size) for name, size in UNITS if sent.max() >= size or size == 1)
    panels = []
    for metric in spec.metric or [*study.aimed, *beside_by_round(study)]:
        points = study.by_round(metric)[["arm", "value"]].rename(columns={"value": "y"})
        points["x"] = sent.reindex(points.index) / size
        points.loc[points.index.get_level_values("round") == 0, "x"] = 0.0
        of_arms = dict(list(points.dropna().groupby("arm")))
        lines = [
            mean_line(arm.label, of_arms[arm.label], str(len(arm.runs)), look_at(arm.place))
            for arm in study.arms
            if fits(arm.facts, spec.where) and arm.label in of_arms and of_arms[arm.label]["x"].any()
        ]
        ideal = None if "/" in metric else metric_class(metric).ideal
        labels = {"xlabel": f"{unit} sent and received", "ylabel": _axis_label(metric)}
        panels += [line_panel(metric_class(metric).title, part, ideal, **labels) for part in pieces(lines, MOST_LINES)]
    caption = (
        "Line: mean over seeds, a point a measured round, from the untouched model at 0; band: lowest to highest seed; "
        f"n: seeds. x: {unit} that all clients together have sent and received up to a round, by definition of the "
        "method (docs/metrics.md). Dashed: the ideal."
    )
    return figure(spec.id, spec.title, caption, panels)


def own_rows(study: Study, metric: str) -> list[Figure]:
    """A metric of the global model on every client's own rows, by round."""
    title = metric_class(metric).title
    return clients(study, metric, f"{title[0].upper()}{title[1:]} by round, client by client", title, of_plain=True)


def clients(study: Study, number: str, title: str, what: str, *, of_plain: bool = False) -> list[Figure]:
    """A number of every client by round, poisoned and clean ones apart; under ``plain`` nobody is weighed."""
    frame = study.frame[study.frame["client"] >= 0]
    shares = frame[frame["metric"] == "poisoned_share"].groupby(["run", "client"])["value"].max()
    own = frame[frame["metric"] == number].dropna(subset=["value"])
    kinds = ["poisoned" if shares.get(key, 0.0) > 0 else "clean" for key in zip(own["run"], own["client"], strict=True)]
    own = own.assign(kind=kinds)
    panels = []
    for arm in [arm for arm in study.arms if of_plain or arm.facts.get("aggregation") != "plain"]:
        lines = []
        for kind, part in own[own["arm"] == arm.label].groupby("kind", sort=False):
            each = [(list(one["round"]), list(one["value"])) for _, one in part.groupby(["run", "client"])]
            mean = part.groupby("round")["value"].mean()
            lines.append(Line(kind, list(mean.index), list(mean), str(len(each)), threads=each, look=KINDS[kind]))
        if lines:
            panels.append(line_panel(arm.label, lines, xlabel="round", ylabel=what))
    caption = (
        "Thin: a client of one seed; thick: mean over clients of a kind and seeds; n: clients, of all seeds together."
    )
    return figure(f"client_{number}", title, caption, panels)


def tradeoff(study: Study) -> list[Figure]:
    """Mean Δ against the held-out loss at the end of every run: less bias that costs the task shows at once.

    The Δ are the scores'; metrics of a section of their own have other units.
    """
    scores = [f"{name}/delta" for name in study.metrics if not metric_class(name).section]
    deltas = [name for name in scores if name in study.finals.columns]
    if not deltas or "heldout_loss" not in study.finals.columns:
        return []
    points = study.finals.assign(bias=study.finals[deltas].mean(axis=1))[["heldout_loss", "bias"]].dropna()
    panels = []
    for title, names in line_panels(study.arms):
        lines = []
        for name, arm in names.items():
            own = points.loc[[run.name for run in arm.runs if run.name in points.index]]
            if len(own):
                xy = list(own["heldout_loss"]), list(own["bias"])
                lines.append(Line(name, *xy, str(len(own)), is_dots=True, look=look_at(arm.place)))
        top: dict[str, Any] = {"ylim": (0, 1.1 * max(points["bias"].max(), 1))}
        panels += [line_panel(title, lines, xlabel="held-out loss (nats)", ylabel="mean Δ", **top)] if lines else []
    caption = (
        "A point a run, in its last measured round: lower is less biased, further left is better at the task. n: runs."
    )
    return figure("bias_against_loss", "Bias against held-out loss", caption, panels)
