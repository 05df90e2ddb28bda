"""Paired differences between two runs, from their item scores."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fedbias_plugin.study import compare


def paired_lines(first, first_round, second, second_round):
    """Of two folders, as last measured in these rounds."""
    sides = ((first, first_round), (second, second_round))
    runs = [SimpleNamespace(folder=folder, last_measured=SimpleNamespace(round=at)) for folder, at in sides]
    return list(compare.paired_lines(*runs))


def write_run(folder, more_wins, probe=()):
    """A run whose pair ``i`` prefers the stereotype where ``more_wins[i]``."""
    (folder / "scores").mkdir(parents=True)
    more = np.where(more_wins, 1.0, -1.0)
    ids = np.asarray([str(i) for i in range(len(more))])
    np.savez(folder / "scores/round_005_crows_pairs.npz", ids=ids, more=more, less=np.zeros(len(more)))
    (folder / "probe.json").write_text(json.dumps({"crows_pairs": {"probe_ids": list(probe)}}))
    return folder


def test_the_difference_and_its_p_value_by_hand(tmp_path):
    # 5 pairs flip from stereotype to anti-stereotype, 1 the other way, 4 stay: McNemar exact p = 2 * 7 / 64 = 0.219
    first = write_run(tmp_path / "a", [1, 1, 1, 1, 1, 0, 1, 1, 0, 0])
    second = write_run(tmp_path / "b", [0, 0, 0, 0, 0, 1, 1, 1, 0, 0])
    (line,) = paired_lines(first, 5, second, 5)
    assert line.startswith("CrowS-Pairs score -40.0 [")
    assert line.endswith("(10 pairs), p = 0.219")


def test_probe_items_do_not_count(tmp_path):
    first = write_run(tmp_path / "a", [1, 1, 0, 0], probe=["0", "1"])
    second = write_run(tmp_path / "b", [0, 0, 0, 0], probe=["0", "1"])
    (line,) = paired_lines(first, 5, second, 5)
    assert line.startswith("CrowS-Pairs score +0.0 [")


def test_under_matched_only_pairs_of_equal_token_count_are_compared(tmp_path):
    # The first two pairs are matched and stay; the last two flip and are not counted.
    for name, wins in (("a", [1, 0, 1, 1]), ("b", [1, 0, 0, 0])):
        folder = write_run(tmp_path / name, wins)
        path = folder / "scores/round_005_crows_pairs.npz"
        arrays = dict(np.load(path)) | {"more_tokens": [3, 3, 3, 3], "less_tokens": [3, 3, 4, 2]}
        np.savez(path, **arrays, reduction="matched")
    (line,) = paired_lines(tmp_path / "a", 5, tmp_path / "b", 5)
    assert line.startswith("CrowS-Pairs score +0.0 [")


def test_runs_on_other_items_or_without_item_scores_are_not_compared(tmp_path):
    first = write_run(tmp_path / "a", [1, 1, 0, 0])
    other = write_run(tmp_path / "b", [1, 1, 0])
    assert paired_lines(first, 5, other, 5) == []
    assert paired_lines(first, 5, other, 4) == []


@pytest.mark.parametrize(
    ("terms", "drop", "expected"),
    [
        (8, 0.0, "+0.0 [+0.0, +0.0] (8 terms), p = 1.000"),
        # Four terms fall to 3 of 5, four to 2 of 5: -40 and -60, error 10.69 / sqrt(8) = 3.78, t(7) = 2.365.
        (8, 50.0, "-50.0 [-58.9, -41.1] (8 terms), p < 0.001"),
        # All fall to 5 of 10: their signs alone say 2^-3.
        (4, 50.0, "-50.0 (4 terms, too few for an interval), p = 0.125"),
    ],
)
def test_stereoset_is_compared_by_target_term(tmp_path, terms, drop, expected):
    for name, wins in (("a", 100.0), ("b", 100.0 - drop)):
        (tmp_path / name / "scores").mkdir(parents=True)
        values = np.zeros((40, 3))
        values[: int(40 * wins / 100), 0] = 1.0
        ids, targets = np.asarray([str(i) for i in range(40)]), np.asarray([f"term{i % terms}" for i in range(40)])
        path = tmp_path / name / "scores/round_001_stereoset.npz"
        np.savez(path, ids=ids, values=values, targets=targets, reduction="mean")
    (line,) = paired_lines(tmp_path / "a", 1, tmp_path / "b", 1)
    assert line == f"StereoSet SS {expected}"
