"""The benchmarks start, and what the check of privacy says of a model that tells and of one that does not."""

from __future__ import annotations

import doctest
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_says_how_it_is_called(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    assert ended.value.code == 0
    assert f"usage: {script.name}" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_says_what_machine_its_figures_are_of(script):
    assert "write_report(" in script.read_text()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_tile amx_bf16", "amx_bf16 avx512_bf16"),
        ("flags\t\t: fpu avx2", "none"),
        ("Features\t: fp asimd bf16", "bf16"),
        ("", "unknown"),
    ],
)
def test_a_report_names_the_cpu_and_its_units_for_bfloat16(monkeypatch, capsys, tmp_path, flags, expected):
    monkeypatch.syspath_prepend(FOLDER)
    import reporting  # type: ignore[import-not-found]

    info = tmp_path / "cpuinfo"
    info.write_text(f"model name\t: A CPU\n{flags}\nmodel name\t: A CPU\n{flags}\n")
    assert (reporting.cpu(info), reporting.bf16_units(info)) == ("A CPU, 2 cores", expected)
    reporting.write_report({"seconds": 1.5}, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"seconds": 1.5, **reporting.machine()}
    assert f"bf16_units {reporting.bf16_units()}" in capsys.readouterr().out


@pytest.fixture
def membership(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import membership  # type: ignore[import-not-found]

    return membership  # type: ignore[no-any-return]


def test_an_attacker_who_learns_nothing_has_an_advantage_of_zero_on_average(membership):
    draws = np.random.default_rng(0)
    found, best = [], []
    for _ in range(2000):
        members, others = draws.normal(size=20), draws.normal(size=60)
        found.append(membership.advantage(members, others))
        threshold = membership.best_threshold(members, others)
        best.append((members <= threshold).mean() - (others <= threshold).mean())
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found)) < 3 * error < 0.01
    assert np.mean(best) > 0.1  # the same threshold judged where it was chosen
    # of two normal distributions a standard deviation apart: 2 Phi(1/2) - 1
    far = membership.advantage(draws.normal(size=20000), draws.normal(1.0, size=20000))
    assert far == pytest.approx(0.3829, abs=0.02)


def test_a_client_that_overfits_gives_its_rows_away_and_a_private_one_does_not(membership):
    pytest.importorskip("opacus")
    world = membership.World(rows=40, others=300, seed=1)
    plain = world.attacked(None, steps=60, batch=10, learning_rate=4e-3)
    private = world.attacked(3.0, steps=60, batch=10, learning_rate=4e-3)
    error = (0.25 / 40 + 0.25 / 300) ** 0.5  # of a difference of two shares, at most
    assert plain["loss"] > 1.96 * error
    assert plain["loss"] > private["loss"]
    assert abs(private["loss"]) <= 1.96 * error
    assert private["gain"] < min(plain["gain"], membership.bound(3.0, 1 / 80))
    assert plain["loss_of_members"] < plain["loss_of_others"] < private["loss_before"]


def test_the_examples_in_it_are_right(membership):
    assert doctest.testmod(membership).failed == 0
