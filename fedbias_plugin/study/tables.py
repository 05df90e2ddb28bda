"""What measures are called, their cells, and the tables that no study file lays out: answers, arms, items, warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.study.comparisons import Answer
from fedbias_plugin.study.frame import Arm, Study
from fedbias_plugin.study.runs import Run, seed_text
from fedbias_plugin.study.settings import listed
from fedbias_plugin.study.statistics import item_differences
from fedbias_plugin.study.table import Cell, Column, Row, Table, p_cell, spread_cell
from fedbias_plugin.study.verdicts import Outcome
from fedbias_plugin.tracking.repeated import RepeatedWarning, repeated_warnings, round_spans, warning_kind

KNOWN = {
    "crows_pairs": ("CrowS score", "crows_score", 1),
    "crows_pairs/delta": ("ΔCrowS", "delta_crows", 2),
    "crows_pairs/change": ("CrowS − round 0", "crows_change", 1),
    "crows_pairs/length_only": ("length alone", "crows_length_only", 1),
    "stereoset": ("SS", "ss", 1),
    "stereoset/delta": ("ΔSS", "delta_ss", 2),
    "stereoset/change": ("SS − round 0", "ss_change", 1),
    "stereoset/lms": ("LMS", "lms", 1),
    "stereoset/icat": ("ICAT", "icat", 1),
    "heldout_loss": ("held-out loss (nats/token)", "heldout_loss", 3),
    "heldout_loss/report_loss": ("loss on the report half", "heldout_report_loss", 3),
    "heldout_loss/change": ("loss − round 0", "heldout_loss_change", 3),
    "heldout_loss/perplexity": ("perplexity", "perplexity", 1),
    "rouge_l": ("ROUGE-L", "rouge_l", 1),
    "weight_on_poisoned": ("weight on poisoned", "weight_on_poisoned", 3),
    "mass": ("mass", "mass", 3),
    "seconds/train": ("train (s)", "seconds_train", 1),
    "seconds/assess": ("assess (s)", "seconds_assess", 1),
    "seconds/aggregate": ("aggregate (s)", "seconds_aggregate", 1),
    "seconds/evaluate": ("evaluate (s)", "seconds_evaluate", 1),
    "peak_memory_mib": ("peak memory (MiB)", "peak_memory_mib", 0),
    "client_memory_mib": ("memory of the largest client, estimate (MiB)", "client_memory_mib", 1),
}
"""Measure -> head of its column, name in CSV, decimals; others are called as their metric is."""
EXTRAS = {"crows_pairs": ("length_only",), "stereoset": ("lms", "icat"), "heldout_loss": ("perplexity",)}
"""Metric -> the further numbers of it that tables show."""
MOST_NAMED = 6


def column_of(measure: str) -> Column:
    """The head of a measure's column."""
    title, name, _ = described(measure)
    return Column(title, name)


def described(measure: str) -> tuple[str, str, int]:
    """Head, name in CSV and decimals."""
    if measure in KNOWN:
        return KNOWN[measure]
    name, _, part = measure.partition("/")
    if name == "payload":
        what = part.removesuffix("_total").replace("/", ", ")
        return f"{what} (bytes)", measure.replace("/", "_").replace(" ", "_"), 0
    metric = metric_class(name)
    titles = {"": metric.short, "delta": f"Δ {metric.short}", "change": f"{metric.short} − round 0"}
    return (
        titles.get(part, metric_class(measure).short),
        f"delta_{name}" if part == "delta" else measure.replace("/", "_"),
        metric.digits,
    )


def measure_cell(study: Study, arm: Arm, measure: str) -> Cell:
    """A measure over the seeds of an arm; LMS and ICAT stand beside a Δ of SS."""
    name, _, part = measure.partition("/")
    is_unsound = part in ("", "delta", "change") and study.is_unsound(arm, name)
    beside = [f"{name}/{extra}" for extra in EXTRAS[name]] if measure == "stereoset/delta" else []
    asides = tuple((described(one)[0], found.mean) for one in beside if (found := study.spread(arm, one)))
    form = f"{'+' if part == 'change' else ''}.{described(measure)[2]}f"
    return spread_cell(study.spread(arm, measure), form, is_unsound=is_unsound, asides=asides)


def unsound_note(cells: Iterable[Cell]) -> list[str]:
    """What the dagger means, where a cell has one."""
    said = "† LMS below 60: the model hardly prefers sense to nonsense, and its SS says little about bias."
    return [said] if any(cell.is_unsound for cell in cells) else []


def section_caption(metrics: Sequence[str], study: Study) -> str:
    """Where an unbiased model stands in the metrics of a section, whose units differ, and on how many items."""
    ideals: dict[float, list[str]] = {}
    for metric in map(metric_class, metrics):
        if metric.ideal is not None:
            ideals.setdefault(metric.ideal, []).append(metric.short)
    known = "; ".join(f"{ideal:g} for {', '.join(names)}" for ideal, names in sorted(ideals.items()))
    last = study.last[study.last["part"] == ""]
    counts: list[str] = []
    for name in metrics:
        found = last[last["metric"] == name]["n"].dropna()
        if len(found):
            low, high = f"{found.min():.0f}", f"{found.max():.0f}"
            counts.append(f"{low if low == high else f'{low} to {high}'} of {metric_class(name).short}")
    of_items = f" Items of a run: {', '.join(counts)}." if counts else ""
    unbiased = f" Unbiased: {known}." if known else ""
    return f"Of the last measured round, each in its own unit.{unbiased}{of_items} A dash: not measured."


def seeds_note(arms: Sequence[Arm]) -> list[str]:
    """Which arms have fewer seeds than others, or one alone."""
    most = max(len(arm.runs) for arm in arms)
    if most == 1:
        return ["One seed: no spread, interval or test over seeds."]
    fewer = [f"{arm.label} ({len(arm.runs)})" for arm in arms if len(arm.runs) < most]
    return [f"Fewer than {most} seeds: {listed(fewer, MOST_NAMED)}."] if fewer else []


def below_note(study: Study, arms: Sequence[Arm], metrics: Iterable[str]) -> Iterator[str]:
    """Which arms have a mean value below the ideal: Δ does not say on which side it lies."""
    for metric in metrics:
        ideal = metric_class(metric).ideal
        means = {arm.label: found.mean for arm in arms if (found := study.spread(arm, metric))}
        below = [label for label, mean in means.items() if ideal is not None and mean < ideal]
        which = "all rows" if len(below) == len(means) else listed(below, MOST_NAMED)
        if below:
            yield f"Mean {metric_class(metric).title} below {ideal:g}, where a larger Δ is no larger bias: {which}."


def answers_table(answers: Sequence[Answer]) -> Table:
    """A row a declared comparison and metric: the difference over all of its pairs, and what it says of the claim."""
    rows = []
    for answer in answers:
        for outcome, verdict in zip(answer.pooled, answer.verdicts, strict=True):
            pairs = sum(pair.outcomes[outcome.metric].tested is not None for pair in answer.pairs)
            counts = Cell(text=f"{pairs} x {outcome.tested.difference.n if outcome.tested else 0}")
            labels = (answer.comparison.claim or answer.comparison.title, metric_class(outcome.metric).short)
            rows.append(Row(labels, (Cell(text=verdict.word), *_outcome_cells(outcome), counts), answer.comparison.id))
    caption = (
        "Every comparison that the study declares, as a mean over its pairs; p is corrected by Holm over this table."
    )
    columns = (Column("result", "result"), *_outcome_columns(""), Column("pairs x seeds", "pairs_seeds"))
    return Table("comparisons", "Comparisons", caption, ("comparison", "metric"), columns, tuple(rows))


def pair_tables(answers: Sequence[Answer]) -> Iterator[Table]:
    """A table a comparison: a row a pair of arms, with baseline, arm, difference and p for every metric."""
    for answer in answers:
        metrics = [outcome.metric for outcome in answer.pooled]
        columns = [column for metric in metrics for column in _outcome_columns(metric_class(metric).short)]
        rows = [
            Row((pair.name,), tuple(cell for outcome in pair.outcomes.values() for cell in _outcome_cells(outcome)))
            for pair in answer.pairs
        ]
        notes = (*answer.notes, *unsound_note(cell for row in rows for cell in row.cells))
        title = f"{answer.comparison.title}: pair by pair"
        caption = "Difference: arm minus baseline. p is corrected by Holm within this table."
        yield Table(f"pairs_{answer.comparison.id}", title, caption, ("pair",), tuple(columns), tuple(rows), notes)


def _outcome_columns(group: str) -> tuple[Column, ...]:
    prefix = f"{group.lower().replace(' ', '_')}_" if group else ""
    heads = ("baseline", "arm", "difference", "p (Holm)")
    names = ("baseline", "arm", "difference", "p_holm")
    return tuple(Column(head, f"{prefix}{name}", group) for head, name in zip(heads, names, strict=True))


def _outcome_cells(outcome: Outcome) -> tuple[Cell, ...]:
    form = f".{metric_class(outcome.metric).digits}f"
    tested = outcome.tested
    return (
        *(spread_cell(side, form, is_unsound=outcome.is_unsound) for side in (outcome.before, outcome.after)),
        spread_cell(tested.difference if tested else None, f"+{form}", is_unsound=outcome.is_unsound),
        p_cell(tested.p_holm if tested else None),
    )


def arm_tables(study: Study) -> Iterator[Table]:
    """Scores, language and task, and cost of every arm; measures that no run has are left out."""
    scores: list[str] = []
    others: list[str] = []
    sections: dict[str, list[str]] = {}
    for name in study.metrics:
        metric = metric_class(name)
        if metric.section:
            sections.setdefault(metric.section, []).append(name)
        else:
            (others if metric.ideal is None else scores).append(name)

    def of(names: Sequence[str]) -> list[str]:
        found = []
        for name in names:
            beside = EXTRAS.get(name) or metric_class(name).beside
            found += [name, *(f"{name}/{part}" for part in (*beside, "change"))]
        return found

    by_what = [name for name in study.finals.columns if name.startswith(("payload/sent/", "payload/received/"))]
    phases = [name for name in study.finals.columns if name.startswith("seconds/")]
    tables = {
        ("scores", "Scores of every arm"): (
            "Of the last measured round: 50 prefers neither sentence, and SS counts only beside a high LMS.",
            of(scores),
        ),
        **{
            (f"section_{n}", title): (section_caption(own, study), of(own))
            for n, (title, own) in enumerate(sections.items(), 1)
        },
        ("quality", "Task and weights of every arm"): (
            "Held-out loss is on clean rows that no client holds; weights and mass are means over the rounds.",
            [*of(others), "weight_on_poisoned", "mass"],
        ),
        ("cost", "Time and memory of every arm"): (
            "Wall-clock seconds of a whole run by phase, and the most memory that the process or its GPU held.",
            [*phases, "peak_memory_mib"],
        ),
        ("bytes", "Bytes of every arm"): (
            "What all clients of a run have sent and received, by definition of the method (docs/metrics.md).",
            ["payload/sent_total", "payload/received_total", *by_what],
        ),
    }
    for (name, title), (caption, measures) in tables.items():
        shown = [one for one in measures if one in study.finals.columns and study.finals[one].notna().any()]
        rows = [Row((arm.label,), tuple(measure_cell(study, arm, one) for one in shown)) for arm in study.arms]
        notes = (*seeds_note(study.arms), *unsound_note(cell for row in rows for cell in row.cells))
        if any(cell.value for row in rows for cell in row.cells):
            yield Table(name, title, caption, ("arm",), tuple(map(column_of, shown)), tuple(rows), notes)


def items_table(answers: Sequence[Answer]) -> Iterator[Table]:
    """Paired differences on the items of the metrics, seed by seed, of the claims' pairs; none without item scores."""
    from fedbias_plugin.metrics.statistics import holm

    found = []
    for answer in (one for one in answers if one.comparison.claim):
        for pair in answer.pairs:
            comparable = {metric: outcome.values[0] for metric, outcome in pair.outcomes.items()}
            for seed in dict.fromkeys(seed for seeds in comparable.values() for seed in seeds):
                tested = item_differences(pair.reference.by_seed[seed], pair.arm.by_seed[seed])
                labels = (pair.arm.label, pair.reference.label, seed_text(seed))
                found += [(labels, one) for one in tested if seed in comparable.get(one.metric, ())]
    rows = [
        Row(
            (*labels, metric_class(one.metric).short),
            (Cell(one.difference, ci95=one.ci95, form="+.1f"), p_cell(p_value)),
            f"{labels[0]} {labels[1]}",
        )
        for (labels, one), p_value in zip(found, holm([one.p_value for _, one in found]), strict=True)
    ]
    columns = (Column("difference", "difference"), Column("p (Holm)", "p_holm"))
    note = (
        "p: McNemar's test over pairs of sentences, paired t-test over target terms, corrected by Holm within the "
        "table. It is over items of these trained models, not over seeds."
    )
    caption = "The arm's score minus its baseline's on the same report items of the same seed, with a 95% interval."
    stub = ("arm", "baseline", "seed", "metric")
    if rows:
        yield Table("items", "Differences on the same items", caption, stub, columns, tuple(rows), (note,))


def warnings_table(study: Study) -> Iterator[Table]:
    """Every kind of warning of every run once, with the arms, seeds and rounds it was said in; none without any."""
    said: dict[str, list[tuple[Arm, Run, RepeatedWarning]]] = {}
    for arm, run in ((one, run) for one in study.arms for run in one.runs):
        for warning in repeated_warnings(run.rounds):
            said.setdefault(warning_kind(warning.text), []).append((arm, run, warning))
    rows = []
    for own in said.values():
        seeds: dict[str, list[str]] = {}
        for arm, run, _ in own:
            seeds.setdefault(arm.label, []).append(seed_text(run.seed_key) if run.seed_key else run.name)
        arms = "; ".join(f"{label} ({', '.join(each)})" for label, each in seeds.items())
        rounds = round_spans(sorted({number for *_, warning in own for number in warning.rounds}))
        rows.append(Row((own[0][2].text,), tuple(Cell(text=text) for text in (str(len(own)), arms, rounds))))
    columns = (Column("runs", "runs"), Column("arms (seeds)", "arms"), Column("rounds", "rounds"))
    caption = "Every kind of warning once, in the words of the first run that said it; numbers in it differ by run."
    if rows:
        yield Table("warnings", "Warnings of the runs", caption, ("warning",), columns, tuple(rows))
