"""A step on the result: the server moves the average against the bias that its probe items show (docs/predictive.md).

For rounds in which all clients are biased alike, where no weighting helps. This package's own; an older relative is
fine-tuning on counterfactual pairs (Zhao et al. 2018, arXiv:1804.06876), here at the server and bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option
from fedbias_plugin.updates.base import ServerSide, Stage

if TYPE_CHECKING:
    from fedbias_plugin.aggregation.bias_program import Lean
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.federation.run_description import HostRun
    from fedbias_plugin.metrics.suite import Measurement
    from fedbias_plugin.state import State

LOSS = "heldout_loss"
LENGTHS = (1.0, 0.5, 0.25, 0.125)
"""Of a step, as shares of the way to no bias, or of the radius where that is nearer."""
BATCH = 32
"""Pairs of one backward pass."""


@dataclass
class PairStep(Stage):
    """After every average, up to ``--pair_steps`` steps along ``-grad sum_b B_b^2``, each of a bounded length.

    B_b is that of :class:`~fedbias_plugin.aggregation.bias_program.Lean`, over the probe items. A step is as long as
    the way to ``f = sum_b B_b^2 = 0`` by the slope, ``2 f / ||grad f||``, and at most ``--pair_radius`` times the
    round's own, ``||theta' - theta||``; or a half, a quarter, an eighth of that. It is taken only if the loss on the
    server's half of the held-out rows is then no higher than the average's and f smaller; of the lengths for which that
    is so, the one with the smallest f. None is taken where every B_b is within its noise.
    Report items and the other half of the held-out rows are never seen.
    """

    order: ClassVar[int] = 400

    pair_steps: int = option(
        0, "steps that the server takes against the bias of the average on the probe items, each round", at_least=0
    )
    pair_radius: float = option(
        0.25, "longest step of --pair_steps, as a share of the length of the round's own", above=0
    )

    @property
    def is_on(self) -> bool:
        """Whether there are steps."""
        return self.pair_steps > 0

    def prepare(self, arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> None:
        """Refuse runs in which the server does not hold the model that is measured, or has nothing to measure it on."""
        if not self.is_on:
            return
        if not run.trains_here or arguments.trainable == "offsite":
            raise UserError("--pair_steps trains the global model at the server: use fedbias run, without offsite.")
        if not any(vars(arguments).get(f"bama_{name}_fraction") for name in ("crows", "stereoset")) or not (
            set(arguments.benchmark_names) & {"crows_pairs", "stereoset"}
        ):
            raise UserError("--pair_steps needs probe items: --bias_benchmarks crows_pairs,stereoset.")
        if not vars(arguments).get("heldout_samples") or arguments.scenario == "none":
            raise UserError(
                "--pair_steps is bounded by the loss on held-out rows: give --heldout_samples, a --scenario."
            )

    def step(self, new: State, theta: State, number: int, server: ServerSide) -> tuple[State, dict[str, float]]:
        """The state after the steps, ``new`` itself where none is taken; and what the round records of them."""
        from fedbias_plugin.aggregation.bias_program import FULL
        from fedbias_plugin.updates.checks import update_norm

        radius = self.pair_radius * update_norm(theta, new)
        leans, margins, loss = _measured(server.measure(new))
        start, most, state, taken = _total(leans, margins), loss, new, 0
        found = start
        for _ in range(self.pair_steps):
            biases = {name: lean.of_margins(margins[name]) for name, lean in leans.items()}
            if not radius or all(abs(biases[name]) <= lean.noise for name, lean in leans.items()):
                break
            direction = _gradient(server, state, leans, biases)
            norm = _norm(direction)
            reach = min(radius, 2 * found / (FULL * norm)) if norm else 0.0
            tried = [_moved(state, direction, length * reach / norm) for length in LENGTHS] if reach else []
            measured = [(one, *_measured(server.measure(one))[1:]) for one in tried]
            better = [one for one in measured if one[2] <= most and _total(leans, one[1]) < found]
            if not better:
                break
            state, margins, loss = min(better, key=lambda one: _total(leans, one[1]))
            found, taken = _total(leans, margins), taken + 1
        numbers = {"pair_steps": float(taken), "pair_loss_before": most, "pair_loss_after": loss}
        return state, {**numbers, "pair_bias_before": start**0.5, "pair_bias_after": found**0.5}


def _measured(measurement: Measurement) -> tuple[dict[str, Lean], dict[str, Any], float]:
    """Of each benchmark what its margins are read by, the margins; and the loss on the server's half."""
    import numpy as np

    from fedbias_plugin.aggregation.bias_program import Lean

    told = {name: scores.margins for name, scores in measurement.item_scores.items() if hasattr(scores, "margins")}
    leans = {name: Lean.of(own, np.zeros((0, len(own))), groups) for name, (own, groups) in told.items()}
    loss = measurement.metrics.get(LOSS, {}).get("loss")
    if loss is None or not leans:
        raise UserError("--pair_steps: no held-out row fits --seq_length, or no probe item tells a margin.")
    return leans, {name: own for name, (own, _) in told.items()}, float(loss)


def _total(leans: Mapping[str, Lean], margins: Mapping[str, Any]) -> float:
    """``sum_b B_b^2``, with the tau of the average."""
    return sum(lean.of_margins(margins[name]) ** 2 for name, lean in leans.items())


def _moved(state: State, direction: State, times: float) -> State:
    """``state`` less ``direction`` so many ``times``."""
    return {name: part - times * direction[name].to(part) for name, part in state.items()}


def _norm(state: State) -> float:
    return sum(float(part.double().square().sum()) for part in state.values()) ** 0.5


def _gradient(server: ServerSide, state: State, leans: Mapping[str, Lean], biases: Mapping[str, float]) -> State:
    """``grad sum_b B_b^2 / 50`` at ``state``, on the CPU; empty where it is zero or not finite.

    Margins are of whole texts here: what two sentences follow cancels in their sum's difference. By token they are
    approximate, divided by the tokens of what stands before, too.
    """
    import torch

    from fedbias_plugin.scoring.inference import evaluating
    from fedbias_plugin.scoring.scorer import SentenceScorer
    from fedbias_plugin.training.parameters import live_parameters, write_state

    write_state(server.model, state)
    prefix = SentenceScorer(server.model, server.tokenizer).prefix_id
    live = live_parameters(server.model)
    sums = {name: torch.zeros_like(part, dtype=torch.float32) for name, part in live.items()}
    frozen = [part for part in live.values() if not part.requires_grad]
    for part in frozen:
        part.requires_grad_(True)
    try:
        with evaluating(server.model, gradients=True):
            for name, lean in leans.items():
                is_mean = getattr(server.suite.of_clients[name], "reduction", "") == "mean"
                for pairs, shares in _batches(server, name, lean):
                    margins = _margins(server, pairs, prefix, is_mean=is_mean)
                    weight = torch.as_tensor(shares, dtype=margins.dtype, device=margins.device)
                    value = 2 * biases[name] * (weight * torch.tanh(margins / lean.tau)).sum()
                    found = torch.autograd.grad(value, list(live.values()), allow_unused=True)
                    for total, one in zip(sums.values(), found, strict=True):
                        if one is not None:
                            total += one.float()
    finally:
        for part in frozen:
            part.requires_grad_(False)
    direction = {name: total.cpu() for name, total in sums.items()}
    return direction if 0 < _norm(direction) < float("inf") else {}


def _batches(server: ServerSide, name: str, lean: Lean) -> Iterator[tuple[list[tuple[str, str]], Sequence[float]]]:
    """Texts (stereotype, other) of the probe items of a benchmark, and the items' shares."""
    metric = server.suite.of_clients[name]
    texts = [text for _, text in metric.texts()]
    per_item = len(texts) // len(metric.ids)
    probe, _ = server.suite.splits[name]
    pairs = [(texts[index * per_item], texts[index * per_item + 1]) for index in probe]
    shares = lean.shares.tolist()
    if len(shares) != len(pairs):  # under matched some pairs do not count: the direction is of all
        shares = [1 / len(pairs)] * len(pairs)
    for start in range(0, len(pairs), BATCH):
        yield pairs[start : start + BATCH], shares[start : start + BATCH]


def _margins(server: ServerSide, pairs: Sequence[tuple[str, str]], prefix: int, *, is_mean: bool) -> Any:
    """log P(first) - log P(second) of every pair behind the token ``prefix``, shape (pairs,), by token where
    ``is_mean``; differentiable."""
    import torch

    from fedbias_plugin.scoring.inference import embedding_device

    rows = [[prefix, *server.tokenizer(text, add_special_tokens=False)["input_ids"]] for both in pairs for text in both]
    longest = max(map(len, rows))
    device = embedding_device(server.model)
    ids = torch.tensor([row + [prefix] * (longest - len(row)) for row in rows], device=device)
    counts = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(longest, device=device) < counts[:, None]
    logits = server.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, -longest:]
    log_probs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None].to(logits.device))[..., 0]
    scores = (log_probs * mask[:, 1:].to(log_probs)).sum(-1)
    if is_mean:
        scores = scores / (counts - 1).to(scores)
    return scores[0::2] - scores[1::2]
