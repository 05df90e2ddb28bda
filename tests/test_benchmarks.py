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


def test_work_and_rates_give_the_limit_of_scoring(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import limits  # type: ignore[import-not-found]

    assert doctest.testmod(limits).failed == 0
    machine = limits.Machine(inner=100, head=50, inner_rate=2000.0, head_rate=500.0)
    # the peer: 2 x 100 x 30 / 2000 = 3 s and 2 x 50 x 30 / 500 = 6 s; ours: 2 x 100 x 20 / 2000 = 2 s and 1 s
    found = limits.scoring_limit(machine, limits.Work(30, 30), limits.Work(20, 5), peer_seconds=18.0, our_seconds=6.0)
    assert found == {
        "tokens_saved": 1.5,
        "work_saved": 3.0,
        "peer_share_of_kernel": 0.5,
        "our_share_of_kernel": 0.5,
        "limit": 6.0,
    }
    assert found["limit"] == found["work_saved"] / found["peer_share_of_kernel"]
    assert machine.rate == 150 / (100 / 2000 + 50 / 500)


def test_what_a_scorer_reads_and_predicts_is_counted(monkeypatch, random_model):
    monkeypatch.syspath_prepend(FOLDER)
    import limits
    import torch

    from fedbias_plugin.training.models import load_model

    model, ids = load_model(str(random_model)), torch.zeros(2, 5, dtype=torch.long)
    with limits.counting(model) as work:
        model(input_ids=ids)
        assert work == limits.Work(tokens=10, head_rows=10)
        model(input_ids=ids, logits_to_keep=1)
    model(input_ids=ids)
    assert work == limits.Work(tokens=20, head_rows=12)


def test_a_round_and_its_bytes_give_the_limit_of_aggregation(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import aggregation  # type: ignore[import-not-found]
    from reporting import Seconds  # type: ignore[import-not-found]

    columns = {"peer": [Seconds(9.0, 8.0), Seconds(6.0, 6.0)], "ours": [Seconds(3.0, 2.0), Seconds(2.0, 2.0)]}
    row = aggregation.figures(columns, least=0.5)
    assert (row["share_of_limit"], row["limit"]) == (0.25, 14.0)
    assert (row["ratio"], row["cpu_ratio"], row["cpu_ratio_low"], row["cpu_ratio_high"]) == (3.0, 3.5, 3.0, 4.0)


@pytest.mark.parametrize(
    ("peer", "device", "missing", "expected"),
    [
        ("vllm", "cuda", {"vllm"}, "vllm is not installed: pip install lm-eval vllm"),
        ("vllm", "cpu", set(), "it runs on cuda alone: --device cuda"),
        ("vllm", "cuda", set(), "there is no GPU"),
        ("openvino", "cuda", set(), "it runs on cpu alone: --device cpu"),
        ("openvino", "cpu", {"openvino"}, "openvino is not installed: pip install lm-eval optimum-intel openvino"),
        ("hf", "cpu", set(), ""),
    ],
)
def test_a_peer_that_cannot_run_here_says_why(monkeypatch, peer, device, missing, expected):
    monkeypatch.syspath_prepend(FOLDER)
    import peers  # type: ignore[import-not-found]

    monkeypatch.setattr(peers, "_is_there", lambda name: name not in missing)
    monkeypatch.setattr(peers.torch.cuda, "is_available", lambda: False)
    assert peers.PEERS[peer].obstacle(device) == expected


def test_times_of_clients_give_ratios_with_and_without_set_up(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import scoring
    from limits import Machine, Work
    from reporting import Seconds

    machine = Machine(inner=100, head=50, inner_rate=1000.0, head_rate=500.0)
    rows = [(Seconds(6.0, 4.0), Seconds(9.0, 8.0), Seconds(3.0, 2.0), machine)] * 2
    found = scoring.figures(rows, Work(10, 10), Work(5, 5), "cpu")
    assert (found["ratio"], found["ratio_with_set_up"]) == (3.0, 5.0)
    assert (found["cpu_ratio"], found["cpu_ratio_with_set_up"], found["set_up_cpu_seconds"]) == (4.0, 6.0, 4.0)
    # ours at the kernel's rate: 2 x 100 x 5 / 1000 + 2 x 50 x 5 / 500 = 2 s, where the peer took 8 s on the CPU
    assert (found["limit"], found["limit_low"], found["limit_high"]) == (4.0, 4.0, 4.0)
    assert found["peer_share_of_kernel"] == 0.5
    assert "cpu_ratio" not in scoring.figures(rows, Work(10, 10), Work(5, 5), "cuda")


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
