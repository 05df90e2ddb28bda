"""Records with known numbers, shared by the tracking tests."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord, RunInfo, Seconds


def crows(score: float, **more: Any) -> dict[str, Any]:
    by_type = {
        "gender": {"score": score + 1, "n": 40, "ci95": [40.0, 60.0], "length_only": 55.5},
        "age": {"score": 48.0, "n": 9, "ci95": None, "length_only": 45.0},
    }
    return {
        "value": score, "ideal": 50.0, "score": score,
        "n": 280, "ci95": [score - 5, score + 5], "noise_floor": 2.4, "length_only": 42.7,
        "by_type": by_type, **more,
    }  # fmt: skip


def stereo(ss: float, lms: float = 90.0, **more: Any) -> dict[str, Any]:
    by_domain = {"race": {"ss": ss - 1, "lms": lms, "icat": 80.0, "n": 30, "terms": 7, "ci95": [41.0, 61.0]}}
    return {
        "value": ss, "ideal": 50.0,
        "ss": ss, "lms": lms, "icat": 81.5, "n": 290, "ci95": [ss - 4, ss + 4], "lms_ci95": [lms - 2, lms + 2],
        "noise_floor": 3.0, "by_domain": by_domain, "intrasentence": {"ss": ss, "lms": lms, "n": 150}, **more,
    }  # fmt: skip


def build_record(number: int = 1) -> RoundRecord:
    """Round ``number``: CrowS 51 + number, SS 45 - number, client 0 poisoned with weight 0.2."""
    clients = {
        0: ClientRecord(1.0, 300, 1.25, 0.5, {"crows_pairs": crows(70.0), "stereoset": stereo(60.0)}, 15.0, 0.2),
        4: ClientRecord(0.0, 300, 1.5, 0.25, {"crows_pairs": crows(51.0), "stereoset": stereo(49.0)}, 1.0, 0.8),
    }
    score, ss = 51.0 + number, 45.0 - number
    return RoundRecord(
        round=number,
        global_=GlobalRecord(
            {
                "crows_pairs": crows(
                    score,
                    items="report",
                    full={"value": 52.5, "ideal": 50.0, "score": 52.5, "n": 377, "ci95": [47.0, 58.0]},
                ),
                "stereoset": stereo(ss, items="report"),
                "heldout_loss": {"value": 2.125, "ideal": None, "loss": 2.125, "perplexity": 8.372897, "n": 100},
            },
            bias_score=3.25,
        ),
        clients=clients if number else {},
        aggregation="bama",
        aggregation_mass=1.0 if number else None,
        effective_clients=1 / 0.68 if number else None,
        weight_on_poisoned=0.2 if number else None,
        learning_rate=5e-5 / number if number else None,
        seconds=Seconds(1.0, 2.0, 0.5, 3.0),
        peak_memory_bytes=2**30,
    )


@pytest.fixture
def make_record() -> Callable[[int], RoundRecord]:
    return build_record


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunInfo]:
    def build(**changes: Any) -> RunInfo:
        settings: dict[str, Any] = {
            "run_name": "a run",
            "output_dir": tmp_path / "out",
            "config": {"num_rounds": 2, "bama_alpha": 0.5, "path": tmp_path},
            "group": "1B2C",
            "job_type": "fedavg-bama",
            "tags": ["tiny"],
            "wandb_mode": "offline",
            "num_clients": 5,
            "poisoned_shares": {0: 1.0},
        }
        return RunInfo(**(settings | changes))

    return build


@pytest.fixture
def machine_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without login, no W&B variables, and an error when anything asks a question."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def refuse(*args: object) -> str:
        raise AssertionError("something prompted")

    monkeypatch.setattr(builtins, "input", refuse)
