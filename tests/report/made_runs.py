"""Small made-up runs, written as a run leaves them, and the studies that tests of the report read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG = {
    "model_name_or_path": "models/tiny", "fed_alg": "fedavg", "scenario": "1B2C", "aggregation": "plain", "seed": 1,
    "num_rounds": 2, "num_clients": 3, "sample_clients": 3, "bama_alpha": 0.5, "bama_lambda": 0.2, "use_peft": True,
    "bama_weighting": "normalized", "attack": "none", "biased_shares": None, "output_dir": "elsewhere",
}  # fmt: skip


def block(key: str, value: float, n: int, ids: str, **more: Any) -> dict[str, Any]:
    """A benchmark's object under ``global``; a quarter of the items are probe items."""
    return {
        key: value, "n": n, "ci95": [value - 3, value + 3], "items": "report", "reduction": "sum", "ids_hash": ids,
        "full": {key: value, "n": n + n // 3}, **more,
    }  # fmt: skip


def line(number: int, crows: float, ss: float, *, lms: float = 90.0, n: int = 90, **settings: Any) -> dict[str, Any]:
    """A line of ``metrics.jsonl``."""
    ids = f"ids of seed {settings['seed']}"
    stereo = block("ss", ss, n, ids, lms=lms, icat=lms * min(ss, 100 - ss) / 50)
    measured = {
        "crows_pairs": block("score", crows, n, ids),
        "stereoset": stereo,
        "heldout_loss": {"loss": 2.0, "n": 9},
    }
    return {
        "round": number, "global": measured, "aggregation": settings["aggregation"],
        "clients": {"0": {"poisoned_share": 1.0, "rows": 30, "weight": 0.25}} if number else {},
        "aggregation_mass": 0.75 if number else None, "weight_on_poisoned": 0.25 if number else None,
        "seconds": {"train": 2.0, "assess": 1.0, "aggregate": 0.5, "evaluate": 0.25}, "peak_memory_bytes": 2**20,
        "warnings": ["LMS below 60: 55.0."] if lms < 60 else [],
    }  # fmt: skip


def make_run(
    folder: Path,
    crows: float = 60.0,
    ss: float = 55.0,
    *,
    original: tuple[float, float] = (52.0, 51.0),
    rounds: int = 2,
    lms: float = 90.0,
    n: int = 90,
    finished: bool = True,
    recorded: bool = False,
    data: str = "a",
    **changes: Any,
) -> Path:
    """A run that ends at ``crows`` and ``ss``.

    Args:
        folder: its output folder.
        crows: final CrowS-Pairs score.
        ss: final SS.
        original: both of round 0.
        rounds: the last recorded round.
        lms: LMS of every round.
        n: report items.
        finished: write ``summary.json``.
        recorded: put the settings into round 0, as current versions do, and write no ``run.json``.
        data: sha256 of the benchmarks' files in ``run.json``.
        changes: settings that differ from :data:`CONFIG`.
    """
    folder.mkdir(parents=True)
    config = CONFIG | changes
    known = {"seed": config["seed"], "aggregation": config["aggregation"]}
    lines = [line(0, *original, lms=lms, n=n, **known)]
    lines += [line(number, crows, ss, lms=lms, n=n, **known) for number in range(1, rounds + 1)]
    if recorded:
        lines[0]["settings"] = {name: value for name, value in config.items() if name != "output_dir"}
    else:
        sources = {name: {"sha256": data} for name in ("crows_pairs", "stereoset")}
        run = {"config": config, "versions": {"torch": "2.0"}, "data": sources}
        (folder / "run.json").write_text(json.dumps(run))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


def make_arm(folder: Path, crows: Sequence[float], ss: Sequence[float] | None = None, **changes: Any) -> Path:
    """A run for each of ``crows``, of seeds 1, 2, ..., below ``folder``."""
    stereo = ss or [55.0] * len(crows)
    for seed, (one, other) in enumerate(zip(crows, stereo, strict=True), start=1):
        make_run(folder / f"seed-{seed}", one, other, seed=seed, **changes)
    return folder
