"""The robust baselines give what Flower 1.42.0 gives; ``record_flower_numbers.py`` recorded its numbers.

Flower's definitions equal ours for equal sample counts (its Multi-Krum weighs the selected by theirs), and for a share
to trim that makes f clients.
"""

import json
from pathlib import Path

import pytest
import torch

from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.aggregation.krum import Krum, MultiKrum
from fedbias_plugin.aggregation.median import Median
from fedbias_plugin.aggregation.substitution import weighted_state
from fedbias_plugin.aggregation.trimmed_mean import TrimmedMean

CASES = json.loads(Path(__file__).with_name("flower_numbers.json").read_text())["cases"]


def state(arrays):
    return {name: torch.tensor(array, dtype=torch.float64) for name, array in zip("ab", arrays, strict=True)}


def result(rule, case):
    local = {client: state(arrays) for client, arrays in enumerate(case["clients"])}
    theta = {name: torch.full_like(tensor, 0.5) for name, tensor in local[0].items()}
    weighting = rule.weigh(ClientReports("fedavg", dict.fromkeys(local, 10), {}, theta, local))
    if weighting.state is not None:
        return weighting, weighting.state
    return weighting, weighted_state(theta, local, weighting.factors)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['clients'])}-{case['byzantine_clients']}")
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("median", lambda byzantine: Median()),
        ("trimmed_mean", TrimmedMean),
        ("krum", Krum),
        ("multi_krum", MultiKrum),
    ],
)
def test_the_new_global_state_is_flowers(case, name, rule):
    weighting, found = result(rule(case["byzantine_clients"]), case)
    expected = state(case[name])
    assert all(torch.allclose(found[part], expected[part], rtol=0, atol=1e-12) for part in expected)
    if name == "multi_krum":
        assert [c for c, weight in weighting.weights.items() if weight > 0] == case["multi_krum_selected"]
