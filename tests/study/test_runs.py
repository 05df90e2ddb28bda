"""Which runs the folders given to ``fedbias compare`` mean."""

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.study.runs import named_runs

LONG = "alpaca-gpt4_20000_fedavg_c3s3_i10_b16a1_l512_r8a16_2026112106{}"


@pytest.fixture
def folder(tmp_path):
    """``folder("own/run", host=True)`` makes a run's folder, with or without its metrics."""

    def make(name, host=False, measured=True):
        path = tmp_path / name
        path.mkdir(parents=True)
        if measured:
            (path / "metrics.jsonl").write_text("{}")
        if host:
            (path / "args.json").write_text("{}")
        return path

    return make


def test_a_run_is_called_by_its_folder_and_one_of_openfedllm_by_the_one_the_user_named(folder):
    mine, theirs = folder("runs/bama"), folder(f"fedavg/{LONG.format(5551)}", host=True)
    assert [name for name, _ in named_runs([mine, theirs])] == ["bama", "fedavg"]


def test_equal_names_are_told_apart_by_the_folder_above_or_by_the_time(folder):
    assert [name for name, _ in named_runs([folder("a/run"), folder("b/run")])] == ["a/run", "b/run"]
    twice = [folder(f"own/{LONG.format(stamp)}", host=True) for stamp in (5551, 5652)]
    assert [name for name, _ in named_runs(twice)] == ["own/20261121065551", "own/20261121065652"]


def test_a_folder_with_one_run_of_openfedllm_stands_for_it_and_one_with_two_is_asked_about(folder, tmp_path):
    path = folder(f"own/{LONG.format(5551)}", host=True)
    assert named_runs([tmp_path / "own"]) == [("own", path)]
    folder(f"own/{LONG.format(5652)}", host=True)
    with pytest.raises(UserError, match=r"own: holds 2 runs; name those you mean, or all: .*own/\*$"):
        named_runs([tmp_path / "own"])


def test_a_run_that_ended_before_round_0_is_left_out_with_a_warning_where_others_remain(folder, caplog):
    good, bad = (
        folder(f"a/{LONG.format(5551)}", host=True),
        folder(f"b/{LONG.format(5652)}", host=True, measured=False),
    )
    assert [path for _, path in named_runs([bad, good])] == [good]
    assert "ended before round 0 was measured, and is left out" in caplog.text
    assert [path for _, path in named_runs([bad])] == [bad]
