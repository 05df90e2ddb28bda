"""Server aggregation of a whole model: this package against OpenFedLLM's way of writing it and Flower's FedAvg.

All average the same states in one process, in turn. OpenFedLLM's way, which must agree bit for bit, multiplies, divides
and sums tensor by tensor, one new tensor for every operation and client, as its ``global_aggregate`` does. Flower's
FedAvg (``pip install flwr``; left out without it) averages records of arrays that it reads out of bytes, as they come
from its clients; it must agree to float32's rounding.

``limit`` is the ratio of a way that takes no longer than the bytes that it must move take through memory
(:mod:`limits`), and ``share_of_limit`` what ours has of it; both of CPU seconds.

    python benchmarks/aggregation.py --json aggregation.json
    python benchmarks/aggregation.py --quick
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import resource
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from limits import copy_rate, moved_bytes
from reporting import Seconds, clocked, line, write_report

from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.aggregation.substitution import substitute
from fedbias_plugin.state import State

WARM_UP = 1


def llama_shapes(quick: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama of 110M parameters (tied embeddings, vocabulary 32,000), or of 15M."""
    hidden, layers, inner = (288, 6, 768) if quick else (768, 12, 2048)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (32_000, hidden)}
    for layer in range(layers):
        shapes |= {f"{layer}.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        shapes |= {f"{layer}.{name}": (inner, hidden) for name in ("gate_proj", "up_proj")}
        shapes |= {f"{layer}.down_proj": (hidden, inner), f"{layer}.norm": (hidden,)}
    return shapes


def make_states(shapes: dict[str, tuple[int, ...]], clients: int) -> tuple[State, dict[int, State]]:
    """A global state and the clients' states, a little different each."""
    draws = torch.Generator().manual_seed(0)
    theta = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    return theta, {client: {name: t + 1e-3 * (client + 1) for name, t in theta.items()} for client in range(clients)}


def peer(fed_alg: str, theta: State, local: dict[int, State], counts: dict[int, int]) -> State:
    """One round as OpenFedLLM writes it; FedAdam's moments are those of the first round."""
    rows, clients = sum(counts.values()), list(local)
    if fed_alg == "fedavg":
        return {name: sum([local[c][name] * counts[c] / rows for c in clients]) for name in theta}
    result = {}
    for name, old in theta.items():
        delta = sum([(local[c][name] - old) for c in clients]) / len(clients)
        second = 0.99 * (torch.ones_like(old) * 1e-3**2) + (1 - 0.99) * torch.square(delta)
        result[name] = old + 1e-3 * torch.div(delta, torch.sqrt(second) + 1e-3)
    return result


def ours(
    fed_alg: str, theta: State, local: dict[int, State], counts: dict[int, int], out: State | None = None
) -> State:
    """The same round with this package; the result goes to ``out``, as in the built-in host."""
    return ServerOptimizer(fed_alg, num_clients=len(local)).aggregate(0, theta, local, counts, into=out)


def bama(
    fed_alg: str, theta: State, local: dict[int, State], counts: dict[int, int], out: State | None = None
) -> State:
    """BAMA's substitution before it, with unequal factors."""
    factors = {client: 2 * (client + 1) / (len(local) * (len(local) + 1)) for client in local}
    return ours(fed_alg, theta, substitute(theta, local, factors), counts, out)


def flower_replies(local: dict[int, State], counts: dict[int, int]) -> list[Any]:
    """What Flower's server has of its clients: a record of arrays and the number of rows of each."""
    from flwr.app import ArrayRecord, MetricRecord, RecordDict

    return [
        RecordDict({"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": counts[client]})})
        for client, state in local.items()
    ]


def flower(replies: list[Any]) -> Any:
    """Flower's FedAvg of them."""
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    return aggregate_arrayrecords(replies, "num-examples")


def measure(fed_alg: str, shapes: dict[str, tuple[int, ...]], clients: int, repeats: int) -> dict[str, float]:
    """Peer and ours in turn; medians, their ratio and its spread."""
    theta, local = make_states(shapes, clients)
    counts = {client: 100 + client for client in local}
    arguments, out = (fed_alg, theta, local, counts), {name: tensor.clone() for name, tensor in theta.items()}
    expected, found = peer(*arguments), ours(*arguments, out)
    assert all(torch.equal(expected[name], found[name]) for name in theta), "the two do not agree"
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]
    calls = {"peer": (peer, arguments), "ours": (ours, (*arguments, out)), "bama": (bama, (*arguments, out))}
    if fed_alg == "fedavg" and importlib.util.find_spec("flwr"):
        replies = flower_replies(local, counts)
        calls["flower"] = flower, (replies,)
        of_flower = flower(replies).to_torch_state_dict()
        assert all(torch.allclose(expected[name], of_flower[name], rtol=1e-5, atol=1e-6) for name in theta)
    del expected, found
    work = [functools.partial(function, *given) for function, given in calls.values()]
    times = [[clocked(call) for call in work] for _ in range(WARM_UP + repeats)]
    columns = dict(zip(calls, zip(*times[WARM_UP:], strict=True), strict=True))
    state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in theta.values())
    return figures(columns, moved_bytes(fed_alg, clients, state_bytes) / copy_rate())


def figures(columns: Mapping[str, Sequence[Seconds]], least: float) -> dict[str, float]:
    """Of every way: medians, ratios to ours of the wall and of the CPU, and limits by the ``least`` CPU seconds."""
    row: dict[str, float] = {}
    for name, column in columns.items():
        row[f"{name}_seconds"] = statistics.median(one.wall for one in column)
        row[f"{name}_cpu_seconds"] = statistics.median(one.cpu for one in column)
    row["share_of_limit"] = least / row["ours_cpu_seconds"]
    for name in columns.keys() - {"ours", "bama"}:
        which = "" if name == "peer" else f"{name}_"
        for clock, before in (("wall", ""), ("cpu", "cpu_")):
            pairs = zip(columns[name], columns["ours"], strict=True)
            ratios = [getattr(theirs, clock) / getattr(own, clock) for theirs, own in pairs]
            key = f"{which}{before}ratio"
            row |= {key: statistics.median(ratios), f"{key}_low": min(ratios), f"{key}_high": max(ratios)}
        row[f"{which}limit"] = row[f"{name}_cpu_seconds"] / least
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15M parameters and 3 repeats, under a minute")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = llama_shapes(options.quick)
    size = sum(torch.Size(shape).numel() for shape in shapes.values())
    report: dict[str, object] = {"parameters": size, "threads": options.threads, "torch": torch.__version__}
    report["copy_gb_per_cpu_second"] = copy_rate() / 1e9
    for clients in (3, 20):
        for fed_alg in ("fedavg", "fedadam"):
            row = measure(fed_alg, shapes, clients, 3 if options.quick else 5)
            report[f"{fed_alg}_{clients}_clients"] = row
            print(f"{fed_alg}, {clients} clients, {size / 1e6:.0f}M: {line(row)}")
            if fed_alg == "fedavg":
                report[f"ratio_{clients}_clients"] = row["ratio"]
    report["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write_report(report, options.json)


if __name__ == "__main__":
    main()
