"""The gap of two models on the same items has the interval of a paired difference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedbias_plugin.metrics.crows_pairs_scores import CrowsPairsScores
from fedbias_plugin.metrics.emulator import Emulator, emulator_block
from fedbias_plugin.metrics.heldout_loss import HeldoutScores
from fedbias_plugin.metrics.statistics import paired_bootstrap
from fedbias_plugin.metrics.suite import Measurement

ROWS = 6
TOKENS = np.asarray([3, 5, 2, 4, 6, 4])
NLL = np.asarray([4.0, 9.0, 2.5, 6.0, 7.0, 8.0])


def measured(nll, margins):
    margins, one = np.asarray(margins, dtype=float), np.ones(len(margins), dtype=int)
    texts = np.asarray(["stereo"] * len(margins))
    ids = [str(n) for n in range(len(margins))]
    crows = CrowsPairsScores(ids, margins, 0 * margins, texts, texts, one, one, "sum")
    loss = float(nll.sum() / TOKENS.sum())
    metrics = {
        "heldout_loss": {"value": loss, "ci95": None, "n": ROWS},
        "crows_pairs": {"value": float(50 * (1 + np.sign(margins)).mean()), "ci95": None, "n": len(margins)},
    }
    return Measurement(
        metrics, None, {"heldout_loss": HeldoutScores(nll, TOKENS, 1.0, TOKENS > 0), "crows_pairs": crows}
    )


def test_gaps_by_hand():
    emulator, whole = (
        measured(NLL + TOKENS * 0.5, [1, 1, 1, -1, -1, 1, 1, -1]),
        measured(NLL, [1, -1, 1, -1, -1, 1, -1, -1]),
    )
    block = emulator_block(emulator, whole, {}, seed=4)
    assert block["loss_gap"] == pytest.approx(-0.5)
    assert block["loss_gap_ci95"] == pytest.approx((-0.5, -0.5))  # every token of every row is as much better
    assert block["crows_pairs_gap"] == pytest.approx(-25.0)
    by_hand = paired_bootstrap([100, 100, 100, 0, 0, 100, 100, 0], [100, 0, 100, 0, 0, 100, 0, 0], seed=4).ci95
    assert block["crows_pairs_gap_ci95"] == by_hand
    shown = {row[0]: row[1:3] for row in Emulator.rows(block)}
    assert shown["whole model minus emulator model: held-out loss"][0] == "-0.5000"


def test_of_report_items_alone_and_none_where_nothing_is_paired():
    emulator, whole = measured(NLL, [1, 1, -1, -1]), measured(NLL, [1, -1, -1, -1])
    same = emulator_block(emulator, whole, {"crows_pairs": [2, 3]}, seed=1)
    assert same["crows_pairs_gap_ci95"] == (0.0, 0.0)
    del whole.item_scores["crows_pairs"]
    whole.item_scores["heldout_loss"] = HeldoutScores(NLL[:3], TOKENS[:3], math.log(4), TOKENS[:3] > 0)
    block = emulator_block(emulator, whole, {}, seed=1)
    assert block["crows_pairs_gap_ci95"] is None
    assert block["loss_gap_ci95"] is None
