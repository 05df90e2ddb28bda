"""What a model's forward pass can do, found out by trying it on a few tokens."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from fedbias_plugin.evaluation.forward import batch_log_probs, head_is_last, model_inputs
from fedbias_plugin.evaluation.inference import embedding_device
from fedbias_plugin.evaluation.prefix_tree import Batch, ScoringPlan, build_plan, make_batch

logger = logging.getLogger(__name__)

TREE_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take a mask of any pattern."""
TOLERANCE = 1e-3
"""Largest difference, in nats, between a token's log-probability in a tree and in the plain text."""
NOISE = 0.2
"""... or this share of what a wrong mask would change: 16-bit models round by more than the tolerance."""


@dataclass(frozen=True)
class Ability:
    """How a model can be evaluated.

    Attributes:
        trees: it takes several texts as one prefix tree, with the same result.
        sliced_head: its logits are its head's output and nothing else, so the head may be applied slice by slice.
    """

    trees: bool
    sliced_head: bool


_KNOWN: WeakKeyDictionary[Any, tuple[object, Ability]] = WeakKeyDictionary()


def ability(model: Any, vocabulary: int) -> Ability:
    """What ``model`` can do; tried once, and said once if it takes no trees.

    Args:
        model: a causal LM, in inference mode.
        vocabulary: the model knows token ids below it.
    """
    kind = attention(model), embedding_device(model)
    known = _KNOWN.get(model)
    if known is None or known[0] != kind:
        found, reason = _try_out(model, vocabulary)
        if reason:
            logger.warning("texts are scored one by one and not as prefix trees, which is slower: %s", reason)
        known = _KNOWN[model] = kind, found
    return known[1]


def attention(model: Any) -> str:
    """Name of the model's attention implementation; ``eager`` where it has no choice."""
    return getattr(model.config, "_attn_implementation", None) or "eager"


def _try_out(model: Any, vocabulary: int) -> tuple[Ability, str]:
    """The ability, and why there are no trees."""
    draws = np.random.RandomState(0).randint(0, vocabulary, size=(2, 8)).tolist()
    texts = [draws[0], draws[0][:3] + draws[1][3:], draws[0][:5] + draws[1][:3]]
    plain, tree = (build_plan(texts, [1, 1, 1], size) for size in (None, 64))
    rows = make_batch(plain, range(3), 0)
    sliced = head_is_last(model, model_inputs(model, rows, trees=False))
    if attention(model) not in TREE_ATTENTION:
        return Ability(False, sliced), f"{attention(model)} attention takes no mask of any pattern"
    expected = _log_probs(model, plain, rows, False, sliced)
    batch = make_batch(tree, [0], 0)
    # As in a model that does not look at the mask: every node sees all before it.
    unmasked = dataclasses.replace(batch, ends=np.full_like(batch.ends, batch.ids.shape[1]))
    try:
        right, wrong = (
            float(np.abs(_log_probs(model, tree, given, True, sliced) - expected).max()) for given in (batch, unmasked)
        )
    except Exception as error:  # whatever a model's own code does with a mask that it does not know
        return Ability(False, sliced), f"the model does not take the mask ({type(error).__name__})"
    # A model that gives NaN passes: the scorer names the item that shows it.
    if right > max(TOLERANCE, NOISE * wrong):
        return Ability(False, sliced), f"the model computes other values from the mask (by up to {right:.2g} nats)"
    return Ability(True, sliced), ""


def _log_probs(model: Any, plan: ScoringPlan, batch: Batch, trees: bool, sliced: bool) -> NDArray[np.float64]:
    """Of every text's tokens, text after text."""
    values = np.empty(len(plan.targets))
    values[batch.predictions] = batch_log_probs(model, batch, trees=trees, sliced_head=sliced)
    return values[plan.text_predictions]
