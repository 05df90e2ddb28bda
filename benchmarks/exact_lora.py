"""Exact LoRA averaging of a large model: 32 layers, q and v of 4096 x 4096, r 16, 10 clients, in seconds and memory.

Times what ``--exact_lora`` does in a round beside the usual mean: the error alone (every LoRA run), ``truncate``, and
the rests of ``fold`` with their addition to frozen weights, of which one layer's stands for all.

    python benchmarks/exact_lora.py --json exact_lora.json
    python benchmarks/exact_lora.py --quick
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reporting import write_report

from fedbias_plugin.aggregation import lora_products as products
from fedbias_plugin.aggregation.base import ClientReports, Weighting
from fedbias_plugin.aggregation.plain import Plain
from fedbias_plugin.aggregation.substitution import weighted_state
from fedbias_plugin.state import State
from fedbias_plugin.updates.exact_lora import ExactLora


def make_round(layers: int, width: int, rank: int, clients: int) -> ClientReports:
    """A round of clients that have moved A and B of q and v of every layer."""
    draws = torch.Generator().manual_seed(0)
    theta: State = {}
    for layer in range(layers):
        for name in ("q_proj", "v_proj"):
            theta[f"{layer}.{name}.lora_A.weight"] = torch.randn(rank, width, generator=draws)
            theta[f"{layer}.{name}.lora_B.weight"] = torch.randn(width, rank, generator=draws)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=draws).mul_(0.1).add_(tensor)

    local = {client: {name: moved(tensor) for name, tensor in theta.items()} for client in range(clients)}
    return ClientReports("fedavg", {client: 100 + client for client in local}, {}, theta, local)


def timed(name: str, function: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds of one call; the latter of all threads, which other work on the machine changes less."""
    start, cpu = time.perf_counter(), time.process_time()
    function()
    return {f"{name}_seconds": time.perf_counter() - start, f"{name}_cpu_seconds": time.process_time() - cpu}


def fold(reports: ClientReports, factors: dict[int, float], weight: torch.Tensor) -> None:
    """Every rest, added to ``weight``, which stands for the frozen weight of its layer."""
    for pair in products.lora_pairs(reports.global_state):
        rest = products.residual(reports.global_state, reports.local_states, factors, pair)
        weight.addmm_(rest.left.float(), rest.right.float(), alpha=2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 layers instead of 32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers, width, rank, clients = 4 if options.quick else 32, 4096, 16, 10
    reports = make_round(layers, width, rank, clients)
    weighting = Plain().weigh(reports)
    theta, local, factors = reports.global_state, reports.local_states, weighting.weights
    found: list[Weighting] = []
    report: dict[str, object] = {
        "layers": layers, "width": width, "rank": rank, "clients": clients, "threads": options.threads,
        "torch": torch.__version__, "load_average": os.getloadavg()[0],
        **timed("usual_mean", lambda: weighted_state(theta, local, factors)),
        **timed("error", lambda: products.mean_error(theta, local, factors)),
        **timed(
            "truncate",
            lambda: found.append(ExactLora(exact_lora="truncate").on_weights(weighting, Plain(), reports, 1)),
        ),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip
    # The frozen weights are the model's own; one of them makes the process larger, so that it comes last.
    report |= timed("fold", lambda: fold(reports, factors, torch.zeros(width, width)))
    report |= found[0].of_round
    for name, value in report.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    write_report(report, options.json)


if __name__ == "__main__":
    main()
