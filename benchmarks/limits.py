"""How far a ratio can go: what arithmetic and memory allow on the machine of the run, measured in the same run.

Scoring: *work* is two operations for every weight of the inner linear layers and token that goes through them, padding
included, and for every weight of the LM head and row that it is applied to; attention, norms, softmax and adapters are
left out. The *peer's share* is the time that this work takes at the rate of the fastest matrix kernel, over the time
that the peer took. The *limit* is ``work saved / peer's share``: how many times faster than this peer a scorer is that
does our work at that rate and nothing besides.

Aggregation: the *limit* is the time in which the bytes that no way of averaging can leave out, every client's state and
theta read and the results written, go through memory at the rate of a plain copy of a large tensor.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from reporting import clocked
from torch.nn.functional import linear

from fedbias_plugin.scoring import fast_linears

ROWS = {"cpu": (128, 512), "cuda": (2048, 8192)}
"""Of the products that a kernel is timed with; the best counts."""
WORK = {"cpu": 5e8, "cuda": 2e12}
"""Operations that are timed together, at least."""
TRIES = 3
COPIED = 2**28
"""Bytes of the copy that measures memory: more than caches hold."""


@dataclass
class Work:
    """What a scorer did: tokens through the inner layers, rows through the LM head."""

    tokens: int = 0
    head_rows: int = 0


@dataclass(frozen=True)
class Machine:
    """A model's weights that multiply, and the operations a second of the fastest kernel on layers of their shapes."""

    inner: int
    head: int
    inner_rate: float
    head_rate: float

    def seconds(self, work: Work) -> float:
        """The least that the matrix products of ``work`` take.

        >>> Machine(inner=50, head=100, inner_rate=1000.0, head_rate=500.0).seconds(Work(tokens=20, head_rows=10))
        6.0
        """
        return 2 * (self.inner * work.tokens / self.inner_rate + self.head * work.head_rows / self.head_rate)

    @property
    def rate(self) -> float:
        """Operations a second where every token goes through the head."""
        return (self.inner + self.head) / (self.inner / self.inner_rate + self.head / self.head_rate)


def scoring_limit(
    machine: Machine, peer: Work, ours: Work, peer_seconds: float, our_seconds: float
) -> dict[str, float]:
    """Shares of the kernel's rate, and the limit of the ratio (see the module); seconds on the clock of ``machine``.

    >>> machine = Machine(inner=50, head=100, inner_rate=1000.0, head_rate=500.0)
    >>> scoring_limit(machine, Work(20, 10), Work(10, 5), peer_seconds=12.0, our_seconds=4.0)
    {'tokens_saved': 2.0, 'work_saved': 2.0, 'peer_share_of_kernel': 0.5, 'our_share_of_kernel': 0.75, 'limit': 4.0}
    """
    least, ideal = machine.seconds(peer), machine.seconds(ours)
    return {
        "tokens_saved": peer.tokens / ours.tokens,
        "work_saved": least / ideal,
        "peer_share_of_kernel": least / peer_seconds,
        "our_share_of_kernel": ideal / our_seconds,
        "limit": peer_seconds / ideal,
    }


@contextlib.contextmanager
def counting(model: Any) -> Iterator[Work]:
    """What a torch model is given to do inside, trials of it included."""
    work = Work()

    def read(_: object, __: object, given: dict[str, Any]) -> None:
        work.tokens += given["input_ids"].numel()

    def predicted(_: object, __: object, logits: torch.Tensor) -> None:
        work.head_rows += logits.shape[:-1].numel()

    hooks = [
        model.register_forward_pre_hook(read, with_kwargs=True),
        model.get_output_embeddings().register_forward_hook(predicted),
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


def measured_machine(model: Any, dtype: torch.dtype, device: str) -> Machine:
    """The model's weights and the fastest of PyTorch's and oneDNN's kernels on each shape, by :func:`clocked`."""
    head = model.get_output_embeddings()
    inner = [tuple(layer.weight.shape) for layer in fast_linears._linear_layers(model, but=head)]
    last = tuple(head.weight.shape)
    weights = sum(outputs * inputs for outputs, inputs in inner)
    return Machine(weights, last[0] * last[1], _rate(inner, dtype, device), _rate([last], dtype, device))


def _rate(shapes: Iterable[tuple[int, int]], dtype: torch.dtype, device: str) -> float:
    """Operations a second over one product of every shape, as often as it is there."""
    counts = Counter(shapes)
    weights = sum(count * outputs * inputs for (outputs, inputs), count in counts.items())
    seconds = sum(count * s[0] * s[1] / _best_rate(s, dtype, device) for s, count in counts.items())
    return weights / seconds


def _best_rate(shape: tuple[int, int], dtype: torch.dtype, device: str) -> float:
    weight, best = torch.randn(shape, device=device).to(dtype), 0.0
    with torch.inference_mode():
        for rows in ROWS[device]:
            states = torch.randn(rows, shape[1], device=device).to(dtype)
            operations = 2 * rows * weight.numel()
            calls = max(1, round(WORK[device] / operations))
            for kernel in _kernels(states, weight):
                kernel()
                took = min(_seconds(kernel, calls, device) for _ in range(TRIES))
                best = max(best, calls * operations / took)
    return best


def _kernels(states: torch.Tensor, weight: torch.Tensor) -> Iterator[Callable[[], object]]:
    yield functools.partial(linear, states, weight)
    if states.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(states))
        yield functools.partial(fast_linears._onednn_linear, packed, None, states)


def _seconds(call: Callable[[], object], times: int, device: str) -> float:
    def work() -> None:
        for _ in range(times):
            call()

    return clocked(work, device).fair(device)


def copy_rate(tries: int = TRIES) -> float:
    """Bytes a second, read and written, of a copy of a large tensor, by CPU seconds of all threads: the best."""
    source = torch.ones(COPIED // 4)
    target = source.clone()
    return 2 * COPIED / min(clocked(lambda: target.copy_(source)).cpu for _ in range(tries))


def moved_bytes(fed_alg: str, clients: int, state_bytes: int) -> int:
    """What an average moves at the least: FedAvg reads the clients and writes the result; FedAdam reads theta too and
    writes two moments, which are those of a first round here.

    >>> moved_bytes("fedavg", 3, 10), moved_bytes("fedadam", 3, 10)
    (40, 70)
    """
    return state_bytes * (clients + {"fedavg": 1, "fedadam": 4}[fed_alg])
