"""An environment without any data of this machine, and small files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedbias_plugin.data import catalog

REAL_DATA = os.environ.get("FEDBIAS_DATA")


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FEDBIAS_DATA", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDBIAS_CACHE", str(tmp_path / "fetched"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))


@pytest.fixture
def real_data() -> Path:
    """The folder ``FEDBIAS_DATA`` named before the tests took it away; skips when there is none."""
    if not REAL_DATA:
        pytest.skip("FEDBIAS_DATA does not name a folder with the real data")
    return Path(REAL_DATA)


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the bundled mini data."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    clean = [{"instruction": f"Ask {n}", "input": "", "output": f"Answer {n}"} for n in range(8)]
    biased = [{"prompt": f"Who {n}?", "chosen": "All.", "rejected": f"Them {n}."} for n in range(7)]
    write_lines(folder / "clean.jsonl", clean)
    write_lines(folder / "biased.jsonl", biased)
    (folder / "crows_pairs.csv").write_text("sent_more,sent_less,stereo_antistereo,bias_type\na,b,stereo,age\n")
    (folder / "stereoset.json").write_text('{"data": {"intrasentence": [{}, {}], "intersentence": [{}]}}')
    monkeypatch.setattr(catalog, "MINI_DATA", folder)
    return folder


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
