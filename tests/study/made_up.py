"""Made-up runs, written as runs leave them: folders with metrics.jsonl, run.json and manifest.json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG = {
    "model_name_or_path": "models/tiny", "fed_alg": "fedavg", "scenario": "1B2C", "aggregation": "plain", "seed": 1,
    "num_rounds": 2, "num_clients": 3, "sample_clients": 3, "bama_alpha": 0.5, "bama_lambda": 0.2, "use_peft": True,
    "bama_weighting": "normalized", "attack": "none", "biased_shares": None, "client_samples": 30,
    "output_dir": "elsewhere",
}  # fmt: skip
SHARES = {
    "3B": [1.0] * 3, "3C": [0.0] * 3, "1B2C": [1.0, 0.0, 0.0], "2B1C": [1.0, 1.0, 0.0], "mix-1B2C": [1 / 3] * 3,
    "mix-2B1C": [2 / 3] * 3,
}  # fmt: skip
BAMA_SCORES = (6.0, 2.0)
"""b_i of poisoned and of clean clients."""


def block(key: str, value: float, n: int, ids: str, **more: Any) -> dict[str, Any]:
    """A benchmark's object under ``global``; a quarter of the items are probe items."""
    full = {key: value, "n": n + n // 3}
    return {
        key: value, "n": n, "ci95": [value - 3, value + 3], "items": "report", "reduction": "sum", "ids_hash": ids,
        "full": full, "report": {key: value, "n": n, "ci95": [value - 3, value + 3]}, **more,
    }  # fmt: skip


def shares_of(config: dict[str, Any]) -> list[float]:
    """Of every client."""
    if config["scenario"] == "custom":
        return [float(share) for share in config["biased_shares"].split(",")]
    clients = config["num_clients"] if isinstance(config["num_clients"], int) else 3
    return [*SHARES.get(config["scenario"], [1.0, 0.0, 0.0]), *[0.0] * (clients - 3)]


def clients_of(config: dict[str, Any]) -> dict[str, Any]:
    """The clients of a round, with the weights of their rule."""
    shares = shares_of(config)[: config["sample_clients"]]
    is_bama = config["aggregation"] == "bama"
    factors = [math.exp(-config["bama_lambda"] * BAMA_SCORES[not share]) if is_bama else 1.0 for share in shares]
    return {
        str(client): {
            "poisoned_share": share, "rows": config["client_samples"], "weight": factor / sum(factors),
            "bias_score": BAMA_SCORES[not share],
        }
        for client, (share, factor) in enumerate(zip(shares, factors, strict=True))
    }  # fmt: skip


def line(
    number: int, crows: float, ss: float, config: dict[str, Any], *, lms: float = 90.0, n: int = 90
) -> dict[str, Any]:
    """A line of ``metrics.jsonl``."""
    ids = f"ids of seed {config['seed']}"
    categories = {
        name: {"score": crows + shift, "ss": ss + shift, "n": 20} for name, shift in (("age", -5), ("gender", 5))
    }
    stereo = block("ss", ss, n, ids, lms=lms, icat=lms * min(ss, 100 - ss) / 50, by_domain=categories)
    clients = clients_of(config) if number else {}
    on_poisoned = sum(row["weight"] for row in clients.values() if row["poisoned_share"])
    return {
        "round": number,
        "global": {
            "crows_pairs": block("score", crows, n, ids, by_type=categories),
            "stereoset": stereo,
            "heldout_loss": {"loss": 2.0 - number / 10, "n": 9},
            "bias_score": (abs(crows - 50) + abs(ss - 50)) / 2,
        },
        "aggregation": config["aggregation"],
        "clients": clients,
        "aggregation_mass": 0.75 if number else None,
        "weight_on_poisoned": on_poisoned if number else None,
        "seconds": {"train": 2.0, "assess": 1.0, "aggregate": 0.5, "evaluate": 0.25},
        "peak_memory_bytes": 2**20,
        "warnings": ["LMS below 60: 55.0."] if lms < 60 else [],
    }


def make_run(
    folder: Path,
    crows: float = 60.0,
    ss: float = 55.0,
    *,
    original: tuple[float, float] = (52.0, 51.0),
    rounds: int | None = None,
    lms: float = 90.0,
    n: int = 90,
    finished: bool = True,
    recorded: bool = False,
    data: str = "a",
    **changes: Any,
) -> Path:
    """A run that ends at ``crows`` and ``ss``, on a straight way from ``original``.

    Args:
        folder: its output folder.
        crows: final CrowS-Pairs score.
        ss: final SS.
        original: both of round 0.
        rounds: the last recorded round; as planned without.
        lms: LMS of every round.
        n: report items.
        finished: write ``summary.json``.
        recorded: put the settings into round 0, as current versions do, and write no ``run.json``.
        data: sha256 of all files in ``run.json``.
        changes: settings that differ from :data:`CONFIG`.
    """
    folder.mkdir(parents=True)
    config = CONFIG | changes
    planned = config["num_rounds"] if isinstance(config["num_rounds"], int) else 2
    rounds = planned if rounds is None else rounds
    ends = ((crows, original[0]), (ss, original[1]))
    lines = []
    for number in range(rounds + 1):
        scores = [start + (end - start) * number / max(rounds, 1) for end, start in ends]
        lines.append(line(number, *scores, config, lms=lms, n=n))
    if recorded:
        lines[0]["settings"] = {name: value for name, value in config.items() if name != "output_dir"}
    else:
        sources = {name: {"sha256": data * 64} for name in ("crows_pairs", "stereoset", "clean", "biased")}
        shares = {str(client): share for client, share in enumerate(shares_of(config))}
        run = {
            "config": config, "versions": {"torch": "2.0"}, "data": sources, "prefix_token": "<s>",
            "poisoned_shares": shares, "model": {"class": "Llama"},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(run))
        rows = [{"client": int(client), "row_ids_sha256": f"{config['seed']}{client}"} for client in shares]
        (folder / "manifest.json").write_text(json.dumps({"clients": rows, "heldout": {"row_ids_sha256": "h"}}))
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


def paper_study(folder: Path, algorithms: Sequence[str] = ("fedavg", "fedadam", "fedprox"), **changes: Any) -> Path:
    """Algorithms by scenarios, BAMA in both weightings, and three participations; three seeds, no two alike."""
    reach = {"3B": 70, "3C": 51, "1B2C": 62, "2B1C": 66, "mix-1B2C": 63, "mix-2B1C": 67}
    for place, fed_alg in enumerate(algorithms):
        arms = [({"scenario": scenario}, score) for scenario, score in reach.items()]
        arms += [({"aggregation": "bama", "bama_weighting": one}, 52) for one in ("normalized", "paper")]
        arms += [({"num_clients": clients}, 58) for clients in (5, 10) if not place]
        for number, (settings, score) in enumerate(arms):
            spread = [score - place + ((7 * number + 3 * seed + place) % 5) / 4 + seed / 2 for seed in range(3)]
            stereo = [50 + 0.7 * (value - 50) for value in spread]
            make_arm(folder / f"{fed_alg}-{number}", spread, stereo, fed_alg=fed_alg, **settings, **changes)
    return folder


def edit_json(path: Path, change: Any) -> None:
    """``change`` what a JSON file, or every line of a JSONL file, holds."""
    values = (
        [json.loads(one) for one in path.read_text().splitlines()]
        if path.suffix == ".jsonl"
        else [json.loads(path.read_text())]
    )
    for value in values:
        change(value)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
