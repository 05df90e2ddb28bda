"""Studies of invented numbers, written as runs leave them: folders with ``metrics.jsonl`` and ``run.json``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CATEGORIES = (
    *("age", "disability", "gender", "nationality", "physical-appearance"),
    *("race-color", "religion", "sexual-orientation", "socioeconomic"),
)
DOMAINS = ("gender", "profession", "race", "religion")
POISONED = {"3B": 3, "3C": 0, "1B2C": 1, "2B1C": 2, "mix-1B2C": 3, "mix-2B1C": 3}
REACH = {"3B": 20.0, "3C": 1.0, "1B2C": 9.0, "2B1C": 15.0, "mix-1B2C": 11.0, "mix-2B1C": 16.0}
SPEED = {"fedavg": 1.0, "fedadam": 0.6, "fedprox": 0.9}


def settings(**changes: Any) -> dict[str, Any]:
    """Resolved arguments of a run of the paper's kind."""
    return {
        "model_name_or_path": "models/tiny", "fed_alg": "fedavg", "scenario": "1B2C", "aggregation": "plain", "seed": 1,
        "num_rounds": 5, "num_clients": 3, "sample_clients": 3, "use_peft": True, "bama_weighting": "normalized",
        "bama_alpha": 0.5, "bama_lambda": 0.2, "attack": "none", "learning_rate": 2e-5,
    } | changes  # fmt: skip


def write_run(folder: Path, config: dict[str, Any], *, warnings: Iterable[str] = ()) -> Path:
    """A whole run: bias rises with the rounds, less under BAMA and FedAdam; seeds differ by a point."""
    folder.mkdir(parents=True)
    lines = [json.dumps(_round(number, config, list(warnings))) for number in range(config["num_rounds"] + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    details = {
        "config": config,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "data": {"clean": {"name": "alpaca-gpt4", "rows": 985, "sha256": "b" * 64}},
    }
    (folder / "run.json").write_text(json.dumps(details), encoding="utf-8")
    return folder


def write_study(folder: Path, configs: Iterable[dict[str, Any]]) -> Path:
    """One run a config, in folders of their own."""
    for number, config in enumerate(configs):
        write_run(folder / f"run_{number:03d}", config)
    return folder


def paper_configs(seeds: Iterable[int] = (1, 2, 3)) -> list[dict[str, Any]]:
    """Three algorithms by six scenarios without BAMA, BAMA on 1B2C in both weightings, and three participations."""
    found = []
    for seed in seeds:
        for fed_alg in SPEED:
            found += [settings(fed_alg=fed_alg, scenario=scenario, seed=seed) for scenario in POISONED]
            bama = {"fed_alg": fed_alg, "aggregation": "bama", "seed": seed}
            found += [settings(bama_weighting=weighting, **bama) for weighting in ("normalized", "paper")]
        for clients in (5, 10):
            for aggregation in ("plain", "bama"):
                found.append(settings(num_clients=clients, aggregation=aggregation, seed=seed))
    return found


def _round(number: int, config: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    trained = 1 - 0.55**number
    is_bama = config["aggregation"] == "bama"
    reach = REACH.get(config["scenario"], 8.0) * SPEED.get(config["fed_alg"], 0.8) * (0.3 if is_bama else 1.0)
    noise = (config["seed"] * 37 + len(config["scenario"]) * 11 + number * 5) % 7 / 3 - 1 if number else 0.0
    crows, ss = 51.0 + reach * trained + noise, 52.0 + 0.7 * reach * trained - noise
    clients = _clients(number, config, is_bama) if number else {}
    on_poisoned = sum(row["weight"] for row in clients.values() if row["poisoned_share"])
    return {
        "round": number,
        "global": {
            "crows_pairs": _crows(crows),
            "stereoset": _stereoset(ss, 88.0 - number),
            "bias_score": (abs(crows - 50) + abs(ss - 50)) / 2,
            "heldout_loss": {
                "loss": 2.4 - 0.5 * trained + (0.05 if is_bama and number else 0.0) + 0.01 * noise,
                "n": 100,
            },
        },
        "clients": clients,
        "aggregation": config["aggregation"],
        "aggregation_mass": 1.0 if number else None,
        "effective_clients": 2.5 if number else None,
        "weight_on_poisoned": on_poisoned if number else None,
        "seconds": {"train": 10.0 * bool(number), "assess": 4.0 * bool(number), "aggregate": 0.1, "evaluate": 6.0},
        "peak_memory_bytes": 2**30 + number * 2**20,
        "warnings": warnings,
    }


def _clients(number: int, config: dict[str, Any], is_bama: bool) -> dict[str, Any]:
    taken = [(number + offset) % config["num_clients"] for offset in range(config["sample_clients"])]
    poisoned = {client for client in taken if client < POISONED.get(config["scenario"], 1)}
    factors = {client: (0.2 if is_bama and client in poisoned else 1.0) for client in taken}
    total = sum(factors.values())
    return {
        str(client): {"poisoned_share": float(client in poisoned), "rows": 300, "weight": factor / total}
        for client, factor in factors.items()
    }


def _crows(score: float) -> dict[str, Any]:
    by_type = {
        name: {"score": min(99.0, score + 6 * index - 24), "n": 60, "ci95": [30.0, 70.0]}
        for index, name in enumerate(CATEGORIES)
    }
    part = {"score": score, "n": 1131, "ci95": [score - 3, score + 3]}
    return {
        **part,
        "by_type": by_type,
        "items": "report",
        "reduction": "sum",
        "full": part | {"n": 1508},
        "report": part,
    }


def _stereoset(ss: float, lms: float) -> dict[str, Any]:
    by_domain = {
        name: {"ss": ss + 3 * index - 4, "lms": lms, "icat": 80.0, "n": 300, "ci95": [40.0, 60.0]}
        for index, name in enumerate(DOMAINS)
    }
    icat = lms * min(ss, 100 - ss) / 50
    part = {"ss": ss, "lms": lms, "icat": icat, "n": 3172, "ci95": [ss - 2, ss + 2]}
    return {
        **part,
        "by_domain": by_domain,
        "items": "report",
        "reduction": "mean",
        "full": part | {"n": 4229},
        "report": part,
    }
