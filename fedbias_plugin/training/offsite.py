"""Clients that do not hold the model: FedBiOT (Wu et al. 2024, arXiv:2406.17706).

The server has the whole model. Clients get an *emulator*, some of its lower layers, and below the head the *adapter*,
its last layers, which they train against the frozen emulator. The server averages the adapters, plugs them into the
whole model, and trains the emulator to follow it on public rows (:mod:`fedbias_plugin.training.alignment`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.public_rows import PUBLIC
from fedbias_plugin.errors import UserError
from fedbias_plugin.training.base import ClientRound, Term
from fedbias_plugin.training.offsite_flags import OffsiteFlags
from fedbias_plugin.training.terms import AdapterProx

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.progress import Progress
    from fedbias_plugin.state import State
    from fedbias_plugin.tasks.base import Task
    from fedbias_plugin.training.client_trainer import TrainingSettings

EMULATOR = "_fedbias_emulates"
"""Attribute of an emulator model: the numbers that its layers have in the whole model."""
FROZEN, ALIGNED_PART = "frozen layers", "emulator"
"""What clients are sent of the emulator model: what nobody trains, and what an alignment changes."""


@dataclass
class Offsite(OffsiteFlags):
    """The last layers, trained by clients behind an emulator of the layers below them."""

    sends_model = True

    def __post_init__(self) -> None:
        self._flags: dict[str, Any] = {}
        self._chosen: list[int] = []

    @property
    def terms(self) -> Sequence[Term]:
        """The proximal one, where it has a weight."""
        return (AdapterProx(self.ot_prox),) if self.ot_prox else ()

    def read(self, partition: Partition | None, flags: Mapping[str, Any]) -> None:
        """Take the public rows."""
        self._flags = dict(flags)
        public = partition.sources.get(PUBLIC) if partition else None
        self._public: list[Row] = public.rows if public else []

    def prepare(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """The whole model; the emulator model of clients is made beside it (:meth:`client_model`).

        Raises:
            UserError: the model has too few layers, is no causal LM, or LoRA does not fit it.
        """
        from fedbias_plugin.training.surgery import layer_count, with_layers

        if model.get_output_embeddings() is None:
            raise UserError(f"--trainable offsite is for causal language models, not for a {type(model).__name__}.")
        numbers = self._numbers(layer_count(model))
        emulator = with_layers(model, numbers)
        if self.ot_params == "lora":
            model = self.adapted(model, seed, **_without_layers(model, range(numbers[-self.adapter_layers])))
        self._freeze(model)
        self._emulator = self._emulating(emulator, numbers, seed)
        if self.client_memory_mb is not None and not self._chosen:  # of the outline, where there is one
            from fedbias_plugin.training.devices import fitted

            self._chosen = fitted(self._emulator, self.parameters(self._emulator), self.choices, self._flags)
        return model

    @contextmanager
    def at_client(self, model: PreTrainedModel, job: ClientRound) -> Iterator[None]:
        """The client trains the last layers that its device can."""
        from fedbias_plugin.training.devices import training_last

        layers = self._chosen[job.client] if self._chosen else self.adapter_layers
        job.extra["adapter_layers"] = float(layers)
        with training_last(self.parameters(model), layers):
            yield

    def unread_model(
        self, config: PreTrainedConfig, make: Callable[[PreTrainedConfig], PreTrainedModel], seed: int
    ) -> PreTrainedModel:
        """The emulator model, of the layers alone that it has.

        Raises:
            UserError: the model has too few layers, or LoRA does not fit it.
        """
        from fedbias_plugin.training.surgery import sliced_config

        numbers = self._numbers(config.num_hidden_layers)
        return self._emulating(make(sliced_config(config, numbers)), numbers, seed)

    def _numbers(self, layers: int) -> list[int]:
        """Which of so many layers an emulator model has: those that an emulator keeps, and the adapter's."""
        from fedbias_plugin.training.surgery import kept_layers

        own = self.adapter_layers
        if own > layers - 2:
            given = "layers" if self.ot_adapter_choices is None else "choices"
            raise UserError(
                f"--ot_adapter_{given} {own}: the model has {layers} layers, and the emulator needs two below the "
                "adapter."
            )
        return [*kept_layers(layers - own, self.ot_drop_ratio), *range(layers - own, layers)]

    def _emulating(self, model: PreTrainedModel, numbers: Sequence[int], seed: int) -> PreTrainedModel:
        """The emulator model of ``model``, which has the layers ``numbers`` of the whole one."""
        from fedbias_plugin.training.parameters import TRAINABLE

        if self.ot_params == "lora":
            below = range(0 if self.ot_align != "none" else len(numbers) - self.adapter_layers)
            model = self.adapted(model, seed, **_without_layers(model, below))
        setattr(model, EMULATOR, numbers)
        setattr(model, TRAINABLE, self)
        self._freeze(model)
        return model

    def _freeze(self, model: PreTrainedModel) -> None:
        """Let nothing but the adapter train in ``model``."""
        wanted = {id(parameter) for parameter in self.parameters(model).values()}
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(id(parameter) in wanted)

    def parameters(self, model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
        """Those of the adapter, under their names in the whole model, of it or of the emulator model."""
        from fedbias_plugin.training.surgery import layer_count, layer_number, renumbered

        numbers = getattr(model, EMULATOR, None) or range(layer_count(model))
        first = len(numbers) - self.adapter_layers
        return {
            renumbered(name, numbers[number]): parameter
            for name, parameter in self._layers_of(model).items()
            if (number := layer_number(name)) is not None and number >= first
        }

    def _layers_of(self, model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
        """Name in ``model`` -> parameter of what may be trained of it: LoRA's, or all."""
        from fedbias_plugin.training.parameters import adapter_parameters

        return adapter_parameters(model) if hasattr(model, "peft_config") else dict(model.named_parameters())

    @property
    def emulator_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Name in the emulator model -> parameter that an alignment trains."""
        return self._aligned_of(self._emulator)

    def _aligned_of(self, emulator: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
        from fedbias_plugin.training.surgery import layer_number

        if self.ot_align == "none":
            return {}
        first = len(getattr(emulator, EMULATOR)) - self.adapter_layers
        return {
            name: parameter
            for name, parameter in self._layers_of(emulator).items()
            if (number := layer_number(name)) is not None and number < first
        }

    def client_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The emulator with the adapter."""
        return self._emulator

    def probe_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """By ``--ot_probe``."""
        return model if self.ot_probe == "plugin" else self._emulator

    def start(
        self, model: PreTrainedModel, task: Task, tokenizer: Any, settings: TrainingSettings, seq_length: int
    ) -> None:
        """Give both models the same adapter, and encode the public rows.

        Raises:
            UserError: no public row has anything to learn from.
        """
        from fedbias_plugin.tasks.collator import PaddingCollator
        from fedbias_plugin.training.alignment import Aligner, Goal, Teacher
        from fedbias_plugin.training.parameters import read_state, write_state

        write_state(self._emulator, read_state(model))
        self._aligned, self._version, self._holds = 0, 0, dict[int, int]()
        self._aligner: Aligner | None = None
        if self.ot_align == "none":
            return
        collate = PaddingCollator(tokenizer.pad_token_id)  # of a preference the response that is preferred
        encoded = task.encode(self._public, tokenizer, seq_length)
        features = [{name: one[name] for name in collate.fill} for one in encoded if task.is_trainable(one)]
        if not features:
            raise UserError(f"--ot_public {self.ot_public}: the response of every row is cut off; raise --seq_length.")
        kept = getattr(self._emulator, EMULATOR)[: -self.adapter_layers]
        mapped = list(enumerate(kept)) if self.ot_layerwise else [(len(kept) - 1, kept[-1])]
        weights = {"sim_weight": 1.0, "kl_weight": self.ot_kl_weight}
        if self.ot_align == "initial":
            weights = {"sim_weight": self.ot_kl_weight, "lm_weight": self.ot_lm_weight}
        goal = Goal(self.ot_sim, mapped, **weights)
        self._teacher = Teacher(model, [layer for _, layer in mapped], features, with_logits=goal.kl_weight > 0)
        self._aligner = Aligner(
            self._emulator,
            self.emulator_parameters,
            self._teacher,
            goal,
            collate,
            batch_size=settings.batch_size,
            learning_rate=self.ot_align_learning_rate or settings.learning_rate,
            seed=settings.seed,
        )

    def before_round(self, round_idx: int, theta: State, progress: Progress) -> None:
        """Align the emulator with the whole model, which holds theta; many steps before the first round."""
        from fedbias_plugin.training.parameters import write_state

        write_state(self._emulator, theta)
        if self._aligner is None or self._aligned > round_idx or (self._aligned and self.ot_align == "initial"):
            return
        steps = self.ot_align_steps * (1 if self._aligned else self.ot_initial_rounds)
        self._teacher.forget()
        with progress.task(f"round {round_idx + 1}: align the emulator", steps) as advance:
            self._aligner.align(round_idx, steps, advance)
        self._aligned, self._version = round_idx + 1, self._version + 1

    @property
    def parts(self) -> dict[str, int]:
        """What is frozen, which stays as it is, and what an alignment makes of the emulator."""
        return {FROZEN: 0} | ({} if self.ot_align == "none" else {ALIGNED_PART: self._version})

    def part(self, name: str) -> State:
        """Name in the emulator model -> weight, not copied."""
        return {name: one.detach() for name, one in self._of_part(self._emulator, name).items()}

    def _of_part(self, model: PreTrainedModel, part: str) -> dict[str, torch.nn.Parameter]:
        """Name in an emulator model -> parameter of one of :attr:`parts`."""
        aligned = self._aligned_of(model)
        if part == ALIGNED_PART:
            return aligned
        trained = {id(one) for one in [*aligned.values(), *self.parameters(model).values()]}
        return {name: one for name, one in model.named_parameters() if id(one) not in trained}

    def broadcast(self, client: int) -> dict[str, State]:
        """What the client has not got of the emulator model: what is frozen once, the emulator where it changed."""
        held = self._holds.get(client)
        if held is None:
            return {name: self.part(name) for name in self.parts}
        return {ALIGNED_PART: self.part(ALIGNED_PART)} if held != self._version else {}

    def take(self, model: PreTrainedModel, broadcast: Mapping[str, State]) -> None:
        """Put what came into an emulator model; the server's own holds it already."""
        import torch

        if model is getattr(self, "_emulator", None):
            return
        with torch.no_grad():
            for part in broadcast.keys() & {FROZEN, ALIGNED_PART}:
                for name, parameter in self._of_part(model, part).items():
                    parameter.copy_(broadcast[part][name])

    def delivered(self, clients: Sequence[int]) -> None:
        """These clients hold the emulator as it is now."""
        self._holds |= dict.fromkeys(clients, self._version)

    def state_dict(self) -> dict[str, Any]:
        """The emulator with its optimizer, which client holds which version of it, and who trains how many layers."""
        kept = {"aligned": self._aligned, "version": self._version, "chosen": self._chosen}
        holds = {str(client): version for client, version in self._holds.items()}
        return {**kept, "holds": holds, "aligner": self._aligner.state_dict() if self._aligner else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._aligned, self._version = state["aligned"], state["version"]
        self._chosen = list(state["chosen"])
        self._holds = {int(client): version for client, version in state["holds"].items()}
        if self._aligner is not None:
            self._aligner.load_state_dict(state["aligner"])


def _without_layers(model: PreTrainedModel, numbers: Sequence[int]) -> dict[str, str]:
    """peft's setting that keeps adapters out of the decoder layers ``numbers``."""
    from fedbias_plugin.training.surgery import decoder_layers

    listed = "|".join(map(str, numbers))
    return {"exclude_modules": rf"(.*\.)?{decoder_layers(model)[1]}\.({listed})\..*"} if numbers else {}
