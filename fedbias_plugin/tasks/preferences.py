"""Pairs of responses through a model: batches, log-probabilities, and the loss of DPO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.tasks.collator import PaddingCollator
from fedbias_plugin.tasks.encoding import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE = "reference"
"""Of a feature: log ref of both responses. Of a batch: the tensor of them, shape (rows, 2)."""


class PairCollator(PaddingCollator):
    """Of n rows a batch of 2 n texts, padded together: the preferred ones, then the rejected ones in the same order."""

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """int64 tensors of shape (2 n, longest text); ``reference`` float32 of shape (n, 2) where features have it."""
        rejected = [{name: feature[f"rejected_{name}"] for name in self.fill} for feature in features]
        batch = super().__call__([*features, *rejected])
        if REFERENCE in features[0]:
            batch[REFERENCE] = torch.tensor([feature[REFERENCE] for feature in features])
        return batch


def response_log_probs(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """log pi of both responses of every row, nats, shape (rows, 2): sums over the tokens that have a label.

    What a soft prompt puts before a text is left out.
    """
    labels = batch["labels"]
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**asked, use_cache=False).logits[:, -labels.shape[1] :]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    return -losses.sum(1).view(2, -1).T


def dpo_margins(log_probs: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """``beta ((log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l)))`` of every row, shape (rows,).

    Args:
        log_probs: of the preferred and the rejected response under the model, shape (rows, 2).
        reference: the same under the reference.
        beta: of DPO.
    """
    gains = log_probs - reference
    return beta * (gains[:, 0] - gains[:, 1])


def dpo_loss(margins: torch.Tensor) -> torch.Tensor:
    """The mean of ``-log sigmoid(margin)``, eq. 7 of Rafailov et al. 2023 (arXiv:2305.18290).

    >>> round(float(dpo_loss(torch.zeros(3))), 6)
    0.693147
    """
    return -torch.nn.functional.logsigmoid(margins).mean()


class Margins:
    """DPO's loss, which remembers the margins of the rows that were trained on.

    Args:
        beta: of DPO.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._seen: list[torch.Tensor] = []

    def loss(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Of a batch of rows that know their reference."""
        margins = dpo_margins(response_log_probs(model, batch), batch[REFERENCE], self.beta)
        self._seen.append(margins.detach())
        return dpo_loss(margins)

    def summary(self) -> dict[str, float]:
        """``dpo_margin``: their mean; ``dpo_accuracy``: the share of them above 0. Empty before any step."""
        if not self._seen:
            return {}
        seen = torch.cat(self._seen).double()
        return {"dpo_margin": float(seen.mean()), "dpo_accuracy": float((seen > 0).double().mean())}


@torch.no_grad()
def with_reference(
    model: Any,
    features: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    *,
    batch_size: int,
    bf16: bool,
    of_base: bool,
) -> list[dict[str, Any]]:
    """``features``, each with the log-probabilities of its two responses under the reference.

    Args:
        model: a causal LM; its mode is put back.
        features: of rows.
        collate: makes a batch.
        batch_size: rows in a batch.
        bf16: whether training runs in bfloat16 autocast, and so the reference too.
        of_base: whether the reference is the model without its adapter, or as it is.
    """
    device = next(model.parameters()).device
    known: list[dict[str, Any]] = []
    was_training = model.training
    model.eval()
    try:
        with (
            without_adapter(model) if of_base else nullcontext(),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        ):
            for start in range(0, len(features), batch_size):
                part = list(features[start : start + batch_size])
                batch = {name: tensor.to(device) for name, tensor in collate(part).items()}
                found = response_log_probs(model, batch).tolist()
                known += [{**feature, REFERENCE: pair} for feature, pair in zip(part, found, strict=True)]
    finally:
        model.train(was_training)
    return known


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The model without its adapter for the while; peft would let all of an adapter train afterwards, here what did."""
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


@contextmanager
def without_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Every dropout of ``model`` is 0 for the while, in whichever mode it is."""
    before = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, torch.nn.Dropout)))
    ]
    try:
        for module, name, _ in before:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
