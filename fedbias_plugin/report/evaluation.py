"""The results of ``fedbias evaluate`` as a text table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedbias_plugin.tracking.formatting import number, with_interval


def evaluation_table(report: Mapping[str, Any]) -> str:
    """One line a benchmark and category, scores with 95% intervals and counts; SS never without LMS."""
    lines: list[str] = []
    if "crows_pairs" in report:
        lines += _crows_lines(report["crows_pairs"])
    if "stereoset" in report:
        lines += _stereoset_lines(report["stereoset"])
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
