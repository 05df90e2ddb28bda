"""Writes ``flower_numbers.json``: what Flower's own robust aggregation makes of small fixed inputs.

Flower 1.42 asks for older rich and protobuf than ``constraints.txt``, so it is not a dependency of the tests. The
numbers were made in an environment of its own, with flwr 1.42.0 installed without its dependencies and these added by
hand, some outside the ranges that it asks for; only its numpy code runs here::

    pip install numpy==2.4.6 && pip install --no-deps flwr==1.42.0    # then what its import asks for
    python tests/aggregation/record_flower_numbers.py
"""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
from flwr.serverapp.strategy.multikrum import select_multikrum

SIZES = [(3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (10, 3)]


def models(clients, byzantine, rng):
    """Two arrays a client: standard normal of the honest, shifted and wider of the others, in a random order."""
    honest = [[rng.normal(0, 1, (2, 3)).round(3), rng.normal(0, 1, 2).round(3)] for _ in range(clients - byzantine)]
    others = [[rng.normal(3, 2, (2, 3)).round(3), rng.normal(-3, 2, 2).round(3)] for _ in range(byzantine)]
    return [(honest + others)[index] for index in rng.permutation(clients)]


def case(clients, byzantine, rng):
    """One round of equal sample counts; ``0.1`` keeps f/C times C from falling below f by rounding."""
    arrays = models(clients, byzantine, rng)
    results = [(model, 1) for model in arrays]
    keep = clients - byzantine
    records = [RecordDict({"arrays": ArrayRecord([*model]), "metrics": MetricRecord({"n": 1})}) for model in arrays]
    chosen = select_multikrum(records, byzantine, keep)
    averages = {
        "median": aggregate_median(results),
        "trimmed_mean": aggregate_trimmed_avg(results, (byzantine + 0.1) / clients),
        "krum": aggregate_krum(results, byzantine, 0),
        "multi_krum": aggregate_krum(results, byzantine, keep),
    }
    return {
        "byzantine_clients": byzantine,
        "clients": [[array.tolist() for array in model] for model in arrays],
        "multi_krum_selected": [index for index, record in enumerate(records) if any(record is one for one in chosen)],
        **{name: [np.asarray(array).tolist() for array in average] for name, average in averages.items()},
    }


if __name__ == "__main__":
    draws = np.random.default_rng(7)
    lines = [json.dumps(case(clients, byzantine, draws)) for clients, byzantine in SIZES]
    content = '{"flwr": "1.42.0", "cases": [\n' + ",\n".join(lines) + "\n]}\n"
    Path(__file__).with_name("flower_numbers.json").write_text(content)
