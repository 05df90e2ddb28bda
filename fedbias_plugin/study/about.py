"""What a study was, what must be known before its first number, and the words that its report uses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import printable
from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.study.comparisons import Answer
from fedbias_plugin.study.frame import Study
from fedbias_plugin.study.runs import mapping, planned_experiments
from fedbias_plugin.study.settings import listed, one_line, same_arm, value_text
from fedbias_plugin.study.verdicts import CONTRADICTED, DIFFERENT, DISAGREE, OVERCORRECTED, PARTLY, SUPPORTED
from fedbias_plugin.tracking.jsonl import METRICS_FILE

LONGEST_VALUE = 200
DECIDED = (SUPPORTED, PARTLY, OVERCORRECTED, CONTRADICTED, DISAGREE)
Facts = list[tuple[str, str]]


def lead(study: Study) -> str:
    """Date, models, and how much was run, in a sentence."""
    runs, arms = len(study.runs), len(study.arms)
    seeds = sorted({run.seed for run in study.runs if run.seed is not None})
    stamps = [(run.folder / METRICS_FILE).stat().st_mtime for run in study.runs]
    days = [datetime.fromtimestamp(stamp, timezone.utc).date().isoformat() for stamp in (min(stamps), max(stamps))]
    models = listed(dict.fromkeys(arm.model or "unknown model" for arm in study.arms))
    return (
        f"{' to '.join(dict.fromkeys(days))}. Model{'s' if ',' in models else ''}: {models}. {runs} "
        f"run{'s' if runs != 1 else ''}, {arms} arm{'s' if arms != 1 else ''}, "
        f"seed{'s' if len(seeds) != 1 else ''} {listed(map(str, seeds)) or 'unknown'}."
    )


def conclusion(answers: Sequence[Answer]) -> str:
    """What the runs say of the claims, a sentence a result."""
    claims = [answer for answer in answers if answer.comparison.claim]
    others = [answer for answer in answers if not answer.comparison.claim]
    different = [_different(answer) for answer in others if answer.word == DIFFERENT]
    many = f"{len(others)} comparison{'s' if len(others) != 1 else ''}"
    beside = f"Significant, of {many} without a claim: {'; '.join(different)}." if different else ""
    if not claims:
        none = f"None of {many} is significant." if others else "There is nothing to compare."
        return beside or f"These runs answer no claim. {none}"
    limits = {answer.limits for answer in claims}
    parts, decided = [], 0
    for word in DECIDED:
        own = [answer for answer in claims if answer.word == word]
        told = (f" in {one.limits}" if one.limits and len(limits) > 1 else "" for one in own)
        said = "; ".join(f"“{one.comparison.claim}”{where}" for one, where in zip(own, told, strict=True))
        parts += [f"{word.capitalize()} ({len(own)} of {len(claims)}): {said}."] if own else []
        decided += len(own)
    if undecided := len(claims) - decided:
        parts.append(f"Open ({undecided} of {len(claims)}): not significant, or not testable with these runs.")
    parts += [f"Tested in {limit} only." for limit in limits if decided and limit and len(limits) == 1]
    parts += [beside] if beside else []
    return " ".join(parts)


def _different(answer: Answer) -> str:
    """What was compared, and the metrics whose difference is significant, with that difference."""
    told, own = [], zip(answer.pooled, answer.verdicts, strict=True)
    for outcome, verdict in own:
        if verdict.word == DIFFERENT and outcome.tested is not None:
            metric = metric_class(outcome.metric)
            told.append(f"{metric.short} {outcome.tested.difference.mean:+.{max(2, metric.digits)}f}")
    left = len(answer.pooled) - len(told)
    rest = f"; {left} other measure{'s' if left != 1 else ''} not significant" if left else ""
    return f"“{answer.comparison.title}” ({', '.join(told)}{rest})"


def findings(answers: Sequence[Answer]) -> list[tuple[str, str, str]]:
    """For every comparison: its result in a word, what was claimed, and the numbers that decide it."""
    limits = {answer.limits for answer in answers if answer.comparison.claim}
    found = []
    for answer in answers:
        why = " ".join(f"{metric_class(one.metric).title} ({one.word}): {one.reason}" for one in answer.verdicts)
        tested = f"Tested in {answer.limits} only. " if answer.limits and len(limits) > 1 else ""
        found.append((answer.word, answer.comparison.claim or answer.comparison.title, f"{tested}{why}"))
    return found


def caveats(study: Study, folders: Sequence[str | Path]) -> list[str]:
    """Sentences for the top of the report; ``folders`` are those it was asked for."""
    return [printable(text) for text in (*_missing_runs(study, folders), *_data_caveats(study))]


def _missing_runs(study: Study, folders: Sequence[str | Path]) -> Iterator[str]:
    """How much of each sweep is in the report, where something is missing."""
    for folder in map(Path, folders):
        present = {run.folder.name for run in study.runs if run.folder.parent == folder.resolve() / "runs"}
        experiments = {name: set(entry["runs"]) for name, entry in planned_experiments(folder).items()}
        planned = {name for names in experiments.values() for name in names}
        if planned - present:
            parts = [f"{name}: {len(present & names)} of {len(names)}" for name, names in experiments.items()]
            yield (
                f"{len(planned & present)} of the {len(planned)} runs that {folder.name} plans are in this report "
                f"({', '.join(parts)}); the others have not finished, or are named under Warnings."
            )


def _data_caveats(study: Study) -> Iterator[str]:
    runs = study.runs
    bundled = sum(any(mapping(part).get("origin") == "bundled" for part in run.part("data").values()) for run in runs)
    if bundled:
        which = "These runs" if bundled == len(runs) else f"{bundled} of {len(runs)} runs"
        yield (
            f"{which} used the bundled mini data, an invented world (docs/small-world.md): their numbers say how the "
            "methods work, and nothing about real stereotypes or about the paper's models."
        )
    for name, most in study.finals.filter(like="/shared_sentences").max().items():
        if most > 0:
            title = metric_class(name.partition("/")[0]).title
            yield (
                f"{title}: up to {most:.0f} sentences of the report items stand in probe items too; "
                "BAMA's weights may be fitted to them."
            )
    scored = [run for run in runs if any(metric_class(name).of_clients for name in run.last_measured.global_.metrics)]
    without = sum(not (run.folder / "scores").is_dir() for run in scored)
    if without:
        yield f"No paired tests on items for {without} of {len(scored)} runs: their folder scores/ is missing."


def what_was_run(study: Study) -> Facts:
    """Items, data, versions, and the settings that all runs share and those in which they differ."""
    facts: Facts = []
    for name in study.metrics:
        found = [run.last_measured.global_.metrics.get(name) for run in study.runs]
        facts.append((metric_class(name).title, listed(_items(block) for block in found if block)))
    sources, versions = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for run in study.runs:
        for name, source in run.part("data").items():
            sources[name].append(_source(mapping(source)))
        for package, version in run.part("versions").items():
            if " " not in package:  # no hash of an extension
                versions[package].append(cut(str(version)))
    facts += [(f"data: {cut(name)}", listed(found)) for name, found in sources.items()]
    if versions:
        said = ", ".join(f"{package} {listed(found)}" for package, found in versions.items())
        facts.append(("versions", cut(said, 600)))
    configs = [run.settings for run in study.runs if run.settings]
    same = []
    for name in sorted({str(name) for config in configs for name in config} - same_arm()):
        values = dict.fromkeys(value_text({**defaults(), **config}.get(name)) for config in configs)
        if len(values) > 1:
            facts.append((cut(name), listed(values)))
        else:
            same.append(f"{name}={next(iter(values))}")
    return [*facts, ("the same in all runs", cut(", ".join(same), 4_000))] if same else facts


def _items(block: Mapping[str, Any]) -> str:
    """``384 report items``, and what the number is where the metric's title does not say it."""
    part = f"{block['items']} " if block.get("items") else ""
    definition = f": {block['definition']}" if block.get("definition") else ""
    return f"{block.get('n', '?')} {part}item{'' if block.get('n') == 1 else 's'}{definition}"


def _source(source: Mapping[str, Any]) -> str:
    """``alpaca-gpt4, 985 rows, sha256 bcc37c64db1a``; of a file only its name, not where it lay."""
    known = str(source.get("name") or str(source.get("file") or "").rpartition("/")[2])
    parts = [known] if known else []
    parts += [f"{source[kind]} {kind}" for kind in ("rows", "items") if isinstance(source.get(kind), int)]
    parts += [f"sha256 {source['sha256'][:12]}"] if isinstance(source.get("sha256"), str) else []
    return cut(", ".join(parts))


def cut(text: str, longest: int = LONGEST_VALUE) -> str:
    """On one line, and not longer than ``longest``."""
    plain = one_line(text)
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"
