"""An emulator is trained to follow the whole model on public rows: FedBiOT's alignment (arXiv:2406.17706, section 4.2).

Distances are over real positions: padding counts nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.memory import free_memory_bytes
from fedbias_plugin.tasks.encoding import IGNORED
from fedbias_plugin.training.random_states import preserved_random_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fedbias_plugin.state import State

Features = Sequence[dict[str, Any]]
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter beside its steps."""


def l2_distance(student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the mean square of the teacher; both (rows, length, width), ``real`` (rows, length).

    >>> l2_distance(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[3.0, 4.0]]]), torch.tensor([[True]])).item()
    0.6399999856948853
    """
    wanted = teacher[real].float()
    return (student[real].float() - wanted).square().sum() / wanted.square().sum()


def cosine_distance(student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """1 - cosine, mean over positions; shapes as in :func:`l2_distance`."""
    return (1 - torch.nn.functional.cosine_similarity(student[real].float(), teacher[real].float(), dim=-1)).mean()


def kl_divergence(student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of next-token distributions from logits (rows, length, vocabulary), nats, temperature 1.

    The mean over positions.
    """
    log_p, log_q = teacher[real].float().log_softmax(-1), student[real].float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


DISTANCES = {"l2": l2_distance, "cos": cosine_distance}
"""``--ot_sim``."""


@dataclass(frozen=True)
class Goal:
    """What the alignment minimises: ``sim_weight`` sim + ``kl_weight`` KL + ``lm_weight`` LM.

    Attributes:
        sim: distance of hidden states, a name in :data:`DISTANCES`.
        mapped: (output of a layer of the emulator, of the whole model), numbers from 0, whose distances are summed.
        sim_weight, kl_weight, lm_weight: see above; LM is the mean loss of the emulator model on the rows' responses.
    """

    sim: str
    mapped: Sequence[tuple[int, int]]
    sim_weight: float = 1.0
    kl_weight: float = 0.0
    lm_weight: float = 0.0


class Teacher:
    """The whole model on public rows; what it says of a row is computed once and kept until its adapter changes.

    Args:
        model: the whole model.
        layers: whose outputs are wanted, numbers from 0.
        features: of the public rows.
        with_logits: whether logits are wanted too; kept as final hidden states, which are smaller.

    Attributes:
        forwards: rows that went through the model so far.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int], features: Features, with_logits: bool) -> None:
        self.model, self.layers, self.features, self.with_logits = model, layers, features, with_logits
        self.forwards = 0
        self._kept: dict[int, list[torch.Tensor]] = {}
        width = model.get_input_embeddings().embedding_dim
        positions = sum(len(feature["input_ids"]) for feature in features)
        size = positions * width * (len(layers) + with_logits) * next(model.parameters()).element_size()
        self._keeps = size <= free_memory_bytes() / 4

    def forget(self) -> None:
        """The adapter has changed."""
        self._kept.clear()

    @torch.no_grad()
    def __call__(
        self, indices: Sequence[int], batch: Mapping[str, torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Outputs of the layers, each (rows, length, width), and logits (rows, length, vocabulary) or None.

        Args:
            indices: of the rows in ``features``.
            batch: of these rows, padded on the right.
        """
        new = [row for row, index in enumerate(indices) if index not in self._kept]
        if new:
            self._read([indices[row] for row in new], {name: part[new] for name, part in batch.items()})
        length = batch["input_ids"].shape[1]
        rows = [self._kept[index] for index in indices]
        parts = [_padded([row[part] for row in rows], length) for part in range(len(self.layers) + self.with_logits)]
        parts = [part.to(batch["input_ids"].device) for part in parts]
        if not self._keeps:
            self.forget()
        return parts[: len(self.layers)], _logits(self.model, parts[-1]) if self.with_logits else None

    def _read(self, indices: Sequence[int], batch: Mapping[str, torch.Tensor]) -> None:
        self.model.eval()  # nobody trains it; peft's new adapters would drop inputs at random
        states = hidden_states(self.model, batch).hidden_states
        self.forwards += len(indices)
        wanted = [states[layer + 1] for layer in self.layers] + ([states[-1]] if self.with_logits else [])
        for row, index in enumerate(indices):
            length = int(batch["attention_mask"][row].sum())
            self._kept[index] = [part[row, :length].cpu() for part in wanted]


def hidden_states(model: Any, batch: Mapping[str, torch.Tensor]) -> Any:
    """The model's outputs on ``batch``, where ``hidden_states[i + 1]`` is the output of layer i, and the last one is
    after the final norm."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**inputs, output_hidden_states=True, use_cache=False)


def _padded(rows: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])


def _logits(model: Any, final: torch.Tensor) -> torch.Tensor:
    """Logits of final hidden states, as the model makes them: Gemma 2 bounds its own."""
    logits = model.get_output_embeddings()(final)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


class Aligner:
    """Trains an emulator; AdamW as the clients have it (no decay, gradients clipped at norm 1), kept between rounds.

    Args:
        emulator: the emulator model: the emulator's layers below the adapter's.
        trained: name -> parameter of the emulator.
        teacher: the whole model on the public rows.
        goal: what is minimised.
        collate: makes a batch of features.
        batch_size: rows of a step.
        learning_rate: of AdamW, constant.
        seed: of the rows of every step.
    """

    def __init__(
        self,
        emulator: PreTrainedModel,
        trained: Mapping[str, torch.nn.Parameter],
        teacher: Teacher,
        goal: Goal,
        collate: Callable[[list[dict[str, Any]]], Any],
        *,
        batch_size: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.emulator, self.trained, self.teacher, self.goal = emulator, dict(trained), teacher, goal
        self._collate, self._seed = collate, seed
        self._batch_size = min(batch_size, len(teacher.features))
        self._optimizer = torch.optim.AdamW(self.trained.values(), lr=learning_rate, weight_decay=0.0)

    def align(self, number: int, steps: int, after_step: Callable[[], None] = lambda: None) -> float:
        """Take ``steps`` steps; returns the mean loss.

        Args:
            number: draws the rows, with the seed.
            steps: at least 1.
            after_step: called after each of them.
        """
        draw = random.Random(f"{self._seed}/align/{number}")
        losses = []
        frozen = {parameter: parameter.requires_grad for parameter in self.emulator.parameters()}
        was_training = self.emulator.training
        self.emulator.eval()
        try:
            with preserved_random_states(), torch.enable_grad():
                for parameter in frozen:
                    parameter.requires_grad_(False)
                for parameter in self.trained.values():
                    parameter.requires_grad_(True)
                for _ in range(steps):
                    losses.append(self._step(draw.sample(range(len(self.teacher.features)), self._batch_size)))
                    after_step()
        finally:
            self._optimizer.zero_grad(set_to_none=True)
            for parameter, was in frozen.items():
                parameter.requires_grad_(was)
            self.emulator.train(was_training)
        return sum(losses) / len(losses)

    def loss(self, indices: Sequence[int]) -> torch.Tensor:
        """What a step on the public rows ``indices`` minimises."""
        device = next(iter(self.trained.values())).device
        batch = {
            name: part.to(device)
            for name, part in self._collate([self.teacher.features[index] for index in indices]).items()
        }
        real, goal = batch["attention_mask"].bool(), self.goal
        wanted, teacher_logits = self.teacher(indices, batch)
        found = hidden_states(self.emulator, batch)
        pairs = zip((layer for layer, _ in goal.mapped), wanted, strict=True)
        distance = DISTANCES[goal.sim]
        apart = [distance(found.hidden_states[layer + 1], state, real) for layer, state in pairs]
        loss = goal.sim_weight * torch.stack(apart).sum()
        if teacher_logits is not None:
            loss = loss + goal.kl_weight * kl_divergence(found.logits, teacher_logits, real)
        if goal.lm_weight:
            labels = batch["labels"][:, 1:].reshape(-1)
            flat = found.logits[:, :-1].float().reshape(len(labels), -1)
            loss = loss + goal.lm_weight * torch.nn.functional.cross_entropy(flat, labels, ignore_index=IGNORED)
        return loss

    def _step(self, indices: Sequence[int]) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.loss(indices)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self._optimizer.step()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """The emulator, and what AdamW knows of it; copies on the CPU."""
        kept = {name: self._optimizer.state.get(parameter, {}) for name, parameter in self.trained.items()}
        moments: dict[str, State] = {
            moment: {name: state[moment].cpu().clone() for name, state in kept.items() if state} for moment in MOMENTS
        }
        steps = {name: float(state["step"]) for name, state in kept.items() if state}
        return {"emulator": copies(self.trained), "steps": steps, **moments}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        for name, parameter in self.trained.items():
            parameter.copy_(state["emulator"][name])
            if name in state["steps"]:
                moments = {moment: state[moment][name].to(parameter.device).clone() for moment in MOMENTS}
                self._optimizer.state[parameter] = {"step": torch.tensor(state["steps"][name]), **moments}


def copies(parameters: Mapping[str, torch.Tensor]) -> State:
    """Copies on the CPU, in their dtypes."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}
