"""The size of every text's own gradient, as differentially private training would clip it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError

if TYPE_CHECKING:
    from fedbias_plugin.scoring.items import FloatArray
    from fedbias_plugin.scoring.scorer import SentenceScorer

NORMS = ("l1", "l2", "clipped", "kept")
"""What is said of a group: mean norms, share of texts above C, and what clipping to C leaves."""


def gradient_norms(scorer: SentenceScorer, texts: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """L1 and L2 norm of the gradient of every text's mean loss a token, nats, each of shape (texts,).

    One text at a time by plain autograd, over all that the model trains as one vector: the adapter's parameters, or
    those that require gradients (:func:`fedbias_plugin.training.parameters.live_parameters`). In evaluation mode,
    without dropout; neither weights nor their ``grad`` change.

    Raises:
        UserError: a text's gradient is not finite, or the model trains nothing.
    """
    import numpy as np
    import torch

    from fedbias_plugin.scoring.inference import embedding_device, evaluating
    from fedbias_plugin.training.parameters import live_parameters

    model = scorer.model
    try:
        parameters = list(live_parameters(model).values())
    except ValueError as error:
        raise UserError(f"gradients cannot be measured: {error}") from None
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]  # an adapter loaded to be scored
    norms = []
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with evaluating(model, gradients=True):
            for text in texts:
                row = [scorer.prefix_id, *scorer.tokenizer(text, add_special_tokens=False)["input_ids"]]
                ids = torch.tensor([row], device=embedding_device(model))
                logits = model(input_ids=ids, use_cache=False).logits[:, -len(row) :]  # behind a soft prompt
                targets = ids[0, 1:].to(logits.device)
                loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), targets)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                parts = [part.float() for part in found if part is not None]
                norms.append(
                    (
                        sum(float(part.abs().sum()) for part in parts),
                        sum(float(part.square().sum()) for part in parts) ** 0.5,
                    )
                )
                if not np.isfinite(norms[-1]).all():
                    raise UserError(f"the gradient of a text is not finite: {text[:60]!r}.")
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    l1, l2 = np.asarray(norms, dtype=np.float64).reshape(-1, 2).T
    return l1, l2


def norm_gaps(l1: FloatArray, l2: FloatArray, is_female: Any, clip: float, seed: int) -> dict[str, Any]:
    """Means of both groups, the gap female minus male and its interval, of every one of :data:`NORMS`.

    Args:
        l1, l2: norms of every text's gradient, shape (texts,).
        is_female: whether each is about women; boolean, shape (texts,).
        clip: C.
        seed: of the bootstrap over the texts of each group.
    """
    import numpy as np

    from fedbias_plugin.metrics.statistics import bootstrap_means, percentile_interval

    found: dict[str, Any] = {}
    kept = np.minimum(1.0, clip / np.maximum(l2, np.finfo(float).tiny))
    clipped = (l2 > clip).astype(np.float64)
    for key, values in zip(NORMS, (l1, l2, clipped, kept), strict=True):
        groups = [values[is_female], values[~is_female]]
        if not all(map(len, groups)):
            continue
        female, male = (float(group.mean()) for group in groups)
        drawn = [bootstrap_means(group, seed=seed + place) for place, group in enumerate(groups)]
        found |= {f"{key}_female": female, f"{key}_male": male, f"{key}_gap": female - male}
        found[f"{key}_gap_ci95"] = percentile_interval(drawn[0] - drawn[1]) if min(map(len, groups)) > 1 else None
    return found
