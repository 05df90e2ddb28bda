"""What a study was: models, data, seeds, counts and versions, as the page and the Markdown say it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedbias_plugin.errors import printable
from fedbias_plugin.report.read_settings import same_arm
from fedbias_plugin.report.study import Study
from fedbias_plugin.report.table_model import Table

MOST_LISTED = 12
LONGEST_VALUE = 200
Facts = list[tuple[str, str]]

READING: tuple[tuple[str, str], ...] = (
    (
        "Scores and Delta",
        "CrowS score and SS are percentages of pairs in which the model prefers the stereotype; Delta is the distance "
        "from 50, neither, in percentage points. A score of 50 does not show that a model is free of bias.",
    ),
    (
        "Length",
        "By sums of log-probabilities the shorter sentence of a CrowS pair tends to win. Length alone is the score of "
        "'fewer tokens wins' with the model's tokenizer: a model that knows nothing stands there rather than at 50.",
    ),
    (
        "SS, LMS and ICAT",
        "LMS says how often the model prefers a sensible sentence to nonsense. A broken model has an SS near 50 too, "
        "so SS counts only beside a high LMS; below 60 it is marked. ICAT is both: LMS x min(SS, 100 - SS) / 50.",
    ),
    (
        "Report and probe items",
        "BAMA weighs clients by their bias on probe items. Headline scores are of the other items, the report items, "
        "which never weigh anybody.",
    ),
    (
        "Seeds and intervals",
        "An arm is one setting under several seeds. Intervals of means are Student's t over seeds; with three seeds "
        "they are wide, and a difference that is not told from chance is not shown to be zero. Paired tests compare "
        "equal seeds.",
    ),
    (
        "Weights and mass",
        "The weight of a client is its share in the new global model. Mass below 1 (BAMA's equation to the letter) "
        "makes the server's step shorter, which alone makes the bias smaller.",
    ),
    (
        "The benchmarks",
        "CrowS-Pairs and StereoSet are noisy, of stereotypes in the United States, and hold offensive sentences. "
        "Adapters trained on poisoned clients are deliberately biased and not for use.",
    ),
)


def counts(study: Study) -> Facts:
    """The numbers under the title."""
    runs = study.runs
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    return [
        ("runs", str(len(runs))),
        ("arms", str(len(study.arms))),
        ("seeds", _listed(map(str, seeds)) or "unknown"),
        ("models", _listed(dict.fromkeys(arm.model for arm in study.arms))),
        ("algorithms", _listed(dict.fromkeys(run.fed_alg for run in runs if run.fed_alg)) or "unknown"),
        ("scenarios", _listed(dict.fromkeys(run.scenario for run in runs if run.scenario)) or "unknown"),
    ]


def lead(study: Study) -> str:
    """The study in a sentence."""
    runs, arms = len(study.runs), len(study.arms)
    aggregations = _listed(dict.fromkeys(run.aggregation for run in study.runs))
    rounds = sorted({run.rounds[-1].round for run in study.runs})
    span = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    word = "round" if span == "1" else "rounds"
    return (
        f"Social bias in federated fine-tuning: {runs} run{'s' if runs != 1 else ''} in {arms} "
        f"arm{'s' if arms != 1 else ''} (a setting under its seeds), {span} {word}, clients weighted by {aggregations}."
    )


def facts(study: Study) -> Facts:
    """Data, items, versions, and the settings that all runs share and those in which they differ."""
    return [*_items(study), *_data(study), *_versions(study), *_settings(study)]


def _items(study: Study) -> Iterator[tuple[str, str]]:
    """How many items the headlines are of."""
    for benchmark, title in (("crows_pairs", "CrowS-Pairs"), ("stereoset", "StereoSet")):
        blocks = [block for run in study.runs if (block := getattr(run.last_measured.global_, benchmark))]
        kinds = dict.fromkeys(f"{block.get('n', '?')} {block.get('items') or ''} items" for block in blocks)
        if kinds:
            yield f"{title}, headline", _listed(kinds)


def _data(study: Study) -> Iterator[tuple[str, str]]:
    """Name or file and hash of the data sets, where ``run.json`` says them."""
    found: dict[str, dict[str, None]] = {}
    for run in study.runs:
        for name, source in _mapping(run.details.get("data")).items():
            if isinstance(source, Mapping):
                found.setdefault(str(name), {})[_source(source)] = None
    for name, sources in found.items():
        yield f"data: {_shown(name)}", _listed(sources)


def _source(source: Mapping[str, Any]) -> str:
    """``alpaca-gpt4, 985 rows, sha256 bcc37c64db1a``; of a file only its name, not where it lay."""
    name = str(source.get("name") or str(source.get("file") or "unnamed").rpartition("/")[2])
    parts = [name]
    parts += [f"{source[kind]} {kind}" for kind in ("rows", "items") if isinstance(source.get(kind), int)]
    if isinstance(source.get("sha256"), str):
        parts.append(f"sha256 {source['sha256'][:12]}")
    return _shown(", ".join(parts))


def _versions(study: Study) -> Iterator[tuple[str, str]]:
    found: dict[str, dict[str, None]] = {}
    for run in study.runs:
        for package, version in _mapping(run.details.get("versions")).items():
            found.setdefault(str(package), {})[_shown(str(version))] = None
    if found:
        yield (
            "versions",
            _shown(", ".join(f"{package} {_listed(versions)}" for package, versions in found.items()), 600),
        )


def _settings(study: Study) -> Iterator[tuple[str, str]]:
    """A line for all settings that agree, and a line for each that does not."""
    configs = [run.settings for run in study.runs if run.settings]
    names = sorted({str(name) for config in configs for name in config} - same_arm())
    same = []
    for name in names:
        values = dict.fromkeys(_value(config.get(name)) for config in configs)
        if len(values) > 1:
            yield _shown(name), _listed(values)
        else:
            same.append(f"{name}={next(iter(values))}")
    if same:
        yield "the same in all runs", _shown(", ".join(same), 4_000)


def split_warnings(tables: Iterable[Table]) -> tuple[list[Table], Table | None]:
    """The tables of results, and the one of warnings, which has a place of its own."""
    listed = list(tables)
    found = next((table for table in listed if table.id == "warnings"), None)
    return [table for table in listed if table is not found], found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _value(value: Any) -> str:
    """A path without its folders: where something lay is nobody's business."""
    text = "none" if value is None else str(value)
    return _shown(text.rstrip("/").rpartition("/")[2] if text.startswith("/") else text, 60)


def _listed(values: Iterable[str]) -> str:
    """At most :data:`MOST_LISTED` of them, with commas."""
    shown = [_shown(value) for value in values]
    more = f" and {len(shown) - MOST_LISTED} more" if len(shown) > MOST_LISTED else ""
    return ", ".join(shown[:MOST_LISTED]) + more


def _shown(text: str, longest: int = LONGEST_VALUE) -> str:
    plain = printable(" ".join(text.split()))
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"
