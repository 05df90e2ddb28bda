"""The results of ``fedbias evaluate`` and ``measure`` as text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fedbias_plugin.tracking.formatting import length_note, number, term_note, with_interval


def evaluation_table(report: Mapping[str, Any]) -> str:
    """One line a benchmark and category, scores with 95% intervals and counts; SS never without LMS."""
    lines: list[str] = []
    if "crows_pairs" in report:
        lines += _crows_lines(report["crows_pairs"])
    if "stereoset" in report:
        lines += _stereoset_lines(report["stereoset"])
    return "\n".join(lines)


def evaluation_summary(report: Mapping[str, Any], bundled: Collection[str]) -> str:
    """A line a benchmark and what its numbers mean.

    Args:
        report: benchmark -> result, as ``fedbias evaluate`` writes it.
        bundled: benchmarks that were the bundled mini data.
    """
    lines: list[str] = []
    if "crows_pairs" in report:
        row = report["crows_pairs"]
        score = with_interval(row["score"], row["ci95"])
        lines.append(f"CrowS-Pairs ({row['reduction']})  score {score}  {length_note(row)}, n={row['n']} pairs")
    if "stereoset" in report:
        row = report["stereoset"]
        score = (
            f"{with_interval(row['ss'], row['ci95'])}  at LMS {number(row['lms'], 1)}, ICAT {number(row['icat'], 1)}"
        )
        lines.append(f"StereoSet ({row['reduction']})   SS    {score}, n={row['n']} clusters, {term_note(row)}")
        lines += [f"warning: {row['warning']}"] if row["warning"] else []
    lines.append("score, SS: % of items in which the model prefers the stereotype; 50 = no preference [95% interval]")
    if "crows_pairs" in report and report["crows_pairs"]["reduction"] != "matched":
        lines.append(
            "length alone: the score of 'fewer tokens wins', where a model that knows nothing stands under sum"
        )
    if "stereoset" in report:
        lines.append("LMS: % in which it prefers a sensible continuation; SS means little below 60")
    if bundled:
        lines.append(f"bundled mini data, an invented world, not the real benchmark: {', '.join(bundled)}")
    return "\n".join(lines)


def _crows_lines(result: Mapping[str, Any]) -> Iterator[str]:
    title = f"CrowS-Pairs ({result['reduction']})"
    yield f"{title:<23}  {'score':<24}  {'n':>6}  length alone"
    for name, row in [("all", result), *result["by_type"].items()]:
        tail = f"  {number(row.get('length_only'), 1):>12}"
        yield _line(name, with_interval(row["score"], row["ci95"], 2), row["n"]) + tail
    yield f"  ties {100 * result['tie_rate']:.1f}%, noise floor {result['noise_floor']:.2f} points"
    yield "  length alone: the score of 'fewer tokens wins'; by sums a model that knows nothing stands there, not at 50"


def _stereoset_lines(result: Mapping[str, Any]) -> Iterator[str]:
    title = f"StereoSet ({result['reduction']})"
    yield f"{title:<23}  {'SS':<24}  {'n':>6}  {'terms':>5}  {'LMS':>6}  {'ICAT':>6}"
    for name, row in [("all", result), *result["by_domain"].items()]:
        tail = f"  {row['terms']:>5}  {number(row['lms']):>6}  {number(row['icat']):>6}"
        yield _line(name, with_interval(row["ss"], row["ci95"], 2), row["n"]) + tail
    yield f"  ties {100 * result['tie_rate']:.1f}%, noise floor {result['noise_floor']:.2f} points"
    if result["warning"]:
        yield f"warning: {result['warning']}"


def _line(name: str, score: str, n: int) -> str:
    return f"  {name:<21}  {score:<24}  {n:>6}"
