"""A classifier on rows: loss and right or wrong, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedbias_plugin.scoring.inference import embedding_device, evaluating
from fedbias_plugin.scoring.scorer import NonFiniteScore
from fedbias_plugin.tasks.base import RowScores

if TYPE_CHECKING:
    from fedbias_plugin.scoring.scorer import SentenceScorer


def label_scores(
    scorer: SentenceScorer,
    features: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    name: Callable[[int], str],
) -> RowScores:
    """The scores of ``scorer.model`` on ``features``, in their order; batches hold rows of like length.

    Args:
        scorer: of the model; ``max_batch_tokens`` bounds a batch.
        features: of the rows, each with a label.
        collate: makes a batch.
        name: names row ``i`` in an error.

    Raises:
        NonFiniteScore: a row's loss is NaN or infinite.
    """
    nll, right = np.empty(len(features)), np.empty(len(features))
    device = embedding_device(scorer.model)
    with evaluating(scorer.model):
        for part in _batches([len(feature["input_ids"]) for feature in features], scorer.max_batch_tokens):
            batch = {key: one.to(device) for key, one in collate([features[index] for index in part]).items()}
            labels = batch.pop("labels")
            log_probs = scorer.model(**batch).logits.float().log_softmax(dim=1)
            nll[part] = -log_probs.gather(1, labels[:, None])[:, 0].cpu().numpy()
            right[part] = (log_probs.argmax(dim=1) == labels).cpu().numpy()
            if scorer.progress is not None:
                scorer.progress(len(part))
    if not np.isfinite(nll).all():
        raise NonFiniteScore(f"The loss of {name(int(np.flatnonzero(~np.isfinite(nll))[0]))} is not a finite number.")
    return RowScores(nll, np.ones(len(features)), right)


def _batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Rows by their length, as many together as ``most`` tokens hold with padding; one at least."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if not batches or (len(batches[-1]) + 1) * lengths[index] > most:
            batches.append([])
        batches[-1].append(index)
    return batches
