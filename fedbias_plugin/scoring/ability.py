"""What a model's forward pass can do, found out by trying it on a few texts before every scoring call.

Nothing is remembered: weights, adapters, hooks and settings change between calls, and the trial costs as much as a few
sentences do.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from fedbias_plugin.scoring.forward import HOOKED, SLICED, WHOLE, batch_log_probs, head_is_last, model_inputs
from fedbias_plugin.scoring.inference import text_config
from fedbias_plugin.scoring.prefix_tree import Batch, ScoringPlan, build_plan, make_batch

logger = logging.getLogger(__name__)

TREE_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take a mask of any pattern."""
TREE_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers in which a position sees others by the mask alone; a convolution or a recurrence does not."""
WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "keep_window_size",
    "attention_window_size",
    "local_attention",
    "index_topk",
    "index_block_size",
)
"""Settings of a model that limit how many tokens a layer looks back on; a tree must not be longer."""
LENGTH = 32
"""Tokens of the longest text of the trial."""
EXACT = 1e-5
"""Largest difference in nats between a token's log-probability in a tree and in the plain text, in 32 bits ..."""
SHARE = 1e-3
"""... or this share of what a wrong mask changes: where the model reacts to it strongly, rounding is larger too."""
NOISE = 0.05
"""The same share in 16 bits, of means over the tokens: a logit of 16 has steps of a sixteenth there."""


@dataclass(frozen=True)
class Ability:
    """How a model can be evaluated.

    Attributes:
        head: how its LM head is applied: ``SLICED``, ``HOOKED`` or ``WHOLE``, see :func:`batch_log_probs`.
        obstacle: why it takes no prefix trees; empty if it does.
    """

    head: str
    obstacle: str = ""

    @property
    def trees(self) -> bool:
        """Whether it takes several texts as one prefix tree, with the same result."""
        return not self.obstacle


_TOLD: WeakSet[Any] = WeakSet()


def find_ability(model: Any, vocabulary: int, longest: int | None) -> Ability:
    """What ``model`` can do; a model that takes no trees is told of once.

    Args:
        model: a causal LM, in inference mode.
        vocabulary: the model knows token ids below it.
        longest: most tokens that it has positions for; None without a limit.
    """
    found = _try_out(model, vocabulary, min(LENGTH, longest or LENGTH))
    if found.obstacle and model not in _TOLD:
        _TOLD.add(model)
        logger.warning("texts are scored one by one and not as prefix trees, which is slower: %s", found.obstacle)
    return found


def attention_window(model: Any) -> int | None:
    """Tokens that a layer looks back at most; a mask that is given from outside would take the place of that limit."""
    config = text_config(model)
    return min((size for key in WINDOWS if isinstance(size := getattr(config, key, None), int)), default=None)


def _try_out(model: Any, vocabulary: int, length: int) -> Ability:
    texts = _texts(vocabulary, length)
    starts = [1] * len(texts)
    head = _head(model, make_batch(build_plan([texts[0][:4]], [1], None), [0], 0))
    obstacle = _known_obstacle(model)
    if obstacle:
        return Ability(head, obstacle)
    plain, tree = build_plan(texts, starts, None), build_plan(texts, starts, sum(map(len, texts)))
    expected = _log_probs(model, plain, make_batch(plain, range(len(texts)), 0), False, head)
    batch = make_batch(tree, [0], 0)
    try:
        right = np.abs(_log_probs(model, tree, batch, True, head) - expected)
        if right.max() <= EXACT:
            return Ability(head)
        # As in a model that does not look at the mask: every node sees all before it.
        unmasked = dataclasses.replace(batch, ends=np.full_like(batch.ends, batch.ids.shape[1]))
        wrong = np.abs(_log_probs(model, tree, unmasked, True, head) - expected)
    except Exception as error:  # whatever a model's own code does with a mask that it does not know
        return Ability(head, f"the model does not take the mask ({type(error).__name__})")
    if _is_rounding(right, wrong, model):
        return Ability(head)
    return Ability(head, f"the model computes other values from the mask (by up to {right.max():.2g} nats)")


def _texts(vocabulary: int, length: int) -> list[list[int]]:
    """Three texts; the second begins with a third and the third with two thirds of the first."""
    draws = np.random.RandomState(0).randint(0, vocabulary, size=(3, length)).tolist()
    cuts = [part * length // 3 for part in range(3)]
    return [draws[0][:cut] + draws[part][cut:] for part, cut in enumerate(cuts)]


def _head(model: Any, text: Batch) -> str:
    try:
        return SLICED if head_is_last(model, model_inputs(model, text, trees=False)) else HOOKED
    except Exception:  # a head that is called with other arguments, several times, or not at all
        return WHOLE


def _known_obstacle(model: Any) -> str:
    attention = getattr(model.config, "_attn_implementation", None) or "eager"
    if attention not in TREE_ATTENTION:
        return f"{attention} attention takes no mask of any pattern"
    layers = sorted(set(getattr(text_config(model), "layer_types", None) or ()).difference(TREE_LAYERS))
    return f"it has {layers[0]} layers" if layers else ""


def _is_rounding(right: NDArray[np.float64], wrong: NDArray[np.float64], model: Any) -> bool:
    """Whether the differences ``right`` are small beside those of a wrong mask; if one is not a number, no."""
    if model.get_input_embeddings().weight.dtype in (torch.float32, torch.float64) and not _is_quantised(model):
        return bool(right.max() <= SHARE * wrong.max())
    return bool(right.mean() <= NOISE * wrong.mean())


def _is_quantised(model: Any) -> bool:
    return getattr(model.config, "quantization_config", None) is not None


def _log_probs(model: Any, plan: ScoringPlan, batch: Batch, trees: bool, head: str) -> NDArray[np.float64]:
    """Of every text's tokens, text after text."""
    values = np.empty(len(plan.targets))
    values[batch.predictions] = batch_log_probs(model, batch, trees=trees, head=head)
    return values[plan.text_predictions]
