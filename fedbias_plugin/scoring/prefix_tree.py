"""Texts as prefix trees: tokens that several texts begin with are read by the model once.

A *pack* is one row of a batch. Its nodes are input tokens in depth-first order; a node sees its ancestors and itself,
so the model computes for it what it would compute in the plain text. The last token of a text is only predicted, never
read. In a *plain* plan every text is a pack of its own, for models that cannot take a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ScoringPlan:
    """What to feed a model to score a list of texts, and where each text's scores are found. All arrays are int64.

    Attributes:
        ids: shape (nodes,), token of every node, pack after pack.
        depths: shape (nodes,), its position in its texts, from 0.
        ends: shape (nodes,), counted from the pack's first node: the first node after the subtree of this one.
        pack_starts: shape (packs + 1,), where each pack's nodes begin.
        parents: shape (predictions,), counted from the pack's first node: the node that a token is predicted from.
        targets: shape (predictions,), the predicted token. A pair (parent, target) is there once a pack.
        prediction_starts: shape (packs + 1,), where each pack's predictions begin.
        text_predictions: shape (scored tokens,), the predictions that make up each text, text after text.
        text_starts: shape (texts + 1,), where each text's begin in ``text_predictions``.
        text_packs: shape (texts,), the pack of each text.
        lengths: shape (texts,), tokens with the prefix token and the context.
        largest_ids: shape (texts,), the largest token id of each text.
    """

    ids: Ints
    depths: Ints
    ends: Ints
    pack_starts: Ints
    parents: Ints
    targets: Ints
    prediction_starts: Ints
    text_predictions: Ints
    text_starts: Ints
    text_packs: Ints
    lengths: Ints
    largest_ids: Ints

    @property
    def pack_sizes(self) -> Ints:
        """Nodes of every pack."""
        return np.diff(self.pack_starts)

    @property
    def texts(self) -> int:
        """Texts that the plan scores."""
        return len(self.lengths)

    @property
    def is_tree(self) -> bool:
        """Whether texts share packs, so that a model needs the mask."""
        return len(self.pack_sizes) < self.texts

    @property
    def texts_by_pack(self) -> Ints:
        """Texts that every pack holds."""
        return np.bincount(self.text_packs, minlength=len(self.pack_sizes))

    def text_of(self, prediction: int) -> int:
        """The first text that ``prediction`` belongs to."""
        position = int(np.flatnonzero(self.text_predictions == prediction)[0])
        return int(np.searchsorted(self.text_starts, position, side="right")) - 1

    def arrays(self) -> dict[str, Ints]:
        """Every attribute by name, to be stored."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class _Pack:
    """A prefix tree that grows by one text at a time, in the order of the texts' tokens."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.predictions: dict[tuple[int, int], int] = {}
        self.path: list[int] = []
        self.last: Sequence[int] = ()

    def shared(self, text: Sequence[int]) -> int:
        """Nodes that ``text`` has in common with the text added last."""
        length = min(len(self.last), len(text) - 1, len(self.path))
        return next((i for i in range(length) if self.last[i] != text[i]), length)

    def add(self, text: Sequence[int], start: int) -> list[int]:
        """Grow by ``text``; gives the predictions of its tokens from ``start`` on."""
        del self.path[self.shared(text) :]
        for depth in range(len(self.path), len(text) - 1):
            self.path.append(len(self.ids))
            self.ids.append(text[depth])
            self.depths.append(depth)
        self.last = text
        pairs = ((self.path[position - 1], text[position]) for position in range(start, len(text)))
        return [self.predictions.setdefault(pair, len(self.predictions)) for pair in pairs]

    def ends(self) -> list[int]:
        ends = [len(self.ids)] * len(self.ids)
        open_nodes: list[int] = []
        for node, depth in enumerate(self.depths):
            while open_nodes and self.depths[open_nodes[-1]] >= depth:
                ends[open_nodes.pop()] = node
            open_nodes.append(node)
        return ends


def build_plan(texts: Sequence[Sequence[int]], starts: Sequence[int], pack_tokens: int | None) -> ScoringPlan:
    """Pack texts into prefix trees.

    Args:
        texts: token ids, the prefix token first, at least two each.
        starts: position of the first scored token of every text, at least 1.
        pack_tokens: most nodes of a pack; a longer text is a pack of its own. None makes every text a pack.
    """
    packs: list[_Pack] = []
    text_packs, predictions = [0] * len(texts), [[0]] * len(texts)
    for index in sorted(range(len(texts)), key=lambda index: tuple(texts[index])):
        text = texts[index]
        if not packs or pack_tokens is None or _grown(packs[-1], text) > pack_tokens:
            packs.append(_Pack())
        text_packs[index] = len(packs) - 1
        predictions[index] = packs[-1].add(text, starts[index])
    first = _starts([len(pack.predictions) for pack in packs])
    pairs = np.asarray([pair for pack in packs for pair in pack.predictions], np.int64).reshape(-1, 2)
    return ScoringPlan(
        ids=_joined([pack.ids for pack in packs]),
        depths=_joined([pack.depths for pack in packs]),
        ends=_joined([pack.ends() for pack in packs]),
        pack_starts=_starts([len(pack.ids) for pack in packs]),
        parents=np.ascontiguousarray(pairs[:, 0]),
        targets=np.ascontiguousarray(pairs[:, 1]),
        prediction_starts=first,
        text_predictions=_joined([[first[text_packs[i]] + p for p in found] for i, found in enumerate(predictions)]),
        text_starts=_starts([len(found) for found in predictions]),
        text_packs=np.asarray(text_packs, np.int64),
        lengths=np.asarray([len(text) for text in texts], np.int64),
        largest_ids=np.asarray([max(text) for text in texts], np.int64),
    )


def _grown(pack: _Pack, text: Sequence[int]) -> int:
    return len(pack.ids) + len(text) - 1 - pack.shared(text)


def _starts(sizes: Sequence[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def _joined(parts: Sequence[Sequence[int]]) -> Ints:
    return np.asarray([value for part in parts for value in part], np.int64)


@dataclass(frozen=True)
class Batch:
    """Several packs as rows of one forward pass, padded to the longest.

    Attributes:
        ids, depths, ends: shape (rows, length); a padding node is its own tree.
        sizes: shape (rows,), nodes that are not padding.
        nodes: shape (wanted,), row * length + node of every node something is predicted from, ascending, each once.
        sources: shape (predictions,), which of ``nodes`` each prediction is made from, ascending.
        targets: shape (predictions,), the predicted token.
        predictions: shape (predictions,), which prediction of the plan each one is.
    """

    ids: Ints
    depths: Ints
    ends: Ints
    sizes: Ints
    nodes: Ints
    sources: Ints
    targets: Ints
    predictions: Ints

    @property
    def visible(self) -> NDArray[np.bool_]:
        """Shape (rows, length, length): whether a node (second) sees another (third), an ancestor or itself."""
        order = np.arange(self.ids.shape[1])
        return (order[None, None, :] <= order[None, :, None]) & (order[None, :, None] < self.ends[:, None, :])


def make_batch(plan: ScoringPlan, packs: Sequence[int], padding_id: int) -> Batch:
    """The packs at ``packs`` of a plan as one batch."""
    sizes = plan.pack_sizes[list(packs)]
    length = int(sizes.max())
    ids = np.full((len(packs), length), padding_id)
    depths = np.zeros_like(ids)
    ends = np.tile(np.arange(1, length + 1), (len(packs), 1))
    nodes, predictions = [], []
    for row, (pack, size) in enumerate(zip(packs, sizes, strict=True)):
        part = slice(plan.pack_starts[pack], plan.pack_starts[pack + 1])
        ids[row, :size], depths[row, :size], ends[row, :size] = plan.ids[part], plan.depths[part], plan.ends[part]
        wanted = np.arange(plan.prediction_starts[pack], plan.prediction_starts[pack + 1])
        nodes.append(row * length + plan.parents[wanted])
        predictions.append(wanted)
    unique, sources = np.unique(np.concatenate(nodes), return_inverse=True)
    order = np.argsort(sources, kind="stable")
    indices = np.concatenate(predictions)[order]
    return Batch(ids, depths, ends, sizes, unique, sources[order], plan.targets[indices], indices)


def plan_batches(plan: ScoringPlan, max_tokens: int, max_nodes: int) -> list[list[int]]:
    """Packs of every batch, longest first, so that too large a batch fails at the start.

    Args:
        plan: what to score.
        max_tokens: rows times padded length of a batch; a longer pack is a batch of its own.
        max_nodes: nodes of a batch that something may be predicted from, a bound on the logits.
    """
    sizes = plan.pack_sizes
    wanted = np.diff(plan.prediction_starts)
    batches: list[list[int]] = []
    nodes = 0
    for pack in sorted(range(len(sizes)), key=lambda pack: (-sizes[pack], pack)):
        needed = min(int(sizes[pack]), int(wanted[pack]))
        last = batches[-1] if batches else None
        if last is None or (len(last) + 1) * sizes[last[0]] > max_tokens or nodes + needed > max_nodes:
            batches.append([])
            nodes = 0
        batches[-1].append(pack)
        nodes += needed
    return batches
