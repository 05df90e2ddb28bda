"""What a client's device must hold at the peak of a training step: an estimate by formula, and a measurement.

Of a decoder with :math:`N` = rows x length tokens in a batch, hidden width d, feed-forward width f, vocabulary V:

- **weights**: all that the client's model has, in their dtypes; the 4 and 8 bit ones packed.
- **gradients** and AdamW's two **moments** of what trains, in its dtype.
- **activations**: what the backward pass keeps of the layers from the lowest that trains up to the last; nothing of
  those below. A layer keeps, a token: the inputs of its norms (d each, float32), queries, keys, values and attention's
  output, 3 f of a gated feed-forward part (4 f of another), and the inputs of the linears that train. A LoRA adapter
  with dropout has an input of its own, and a mask (counted as on a CPU, as large as the input; a GPU's has a byte an
  entry); others share theirs. Attention that keeps its scores ("eager", or with dropout) adds heads x length, three
  times with dropout. With gradient checkpointing every layer keeps its input alone (d), and one layer at a time is
  computed again.
- **logits**: N V in float32, three times: their log-softmax, its gradient and that of the logits; one more where the
  model bounds its logits.

The peak is weights and moments, and what is larger: activations and logits as the backward pass begins (with the
gradients of batches before, where several make a step), or the gradients and the optimizer's temporaries as it ends.
Left out: buffers, temporaries of single operations, what terms keep, the tokens of a soft prompt, and fragments of an
allocator. A term that trains clients itself (DP) has another peak.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedbias_plugin.errors import UserError
from fedbias_plugin.training.isolation import training_mode
from fedbias_plugin.training.surgery import decoder_layers, layer_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fedbias_plugin.training.client_trainer import TrainingSettings

LOGIT_COPIES = 3
"""Tensors of the logits' shape, in float32, as the backward pass begins."""
PACKED = {"load_in_4bit": 0.5 + 1 / 64, "load_in_8bit": 1.0}
"""Flag -> bytes of a weight of a decoder layer; nf4 has a scale of a byte for every 64."""
BYTES = {"float32": 4.0, "bfloat16": 2.0}
"""``--dtype`` -> bytes of a weight."""


@dataclass(frozen=True)
class ClientMemory:
    """Bytes by what they are of, see the module; ``held_gradients`` are those of batches before in the same step."""

    weights: int
    moments: int
    gradients: int
    activations: int
    logits: int
    held_gradients: int = 0

    @property
    def total(self) -> int:
        """Bytes at the peak of a training step."""
        forward = self.activations + self.logits + self.held_gradients
        return self.weights + self.moments + max(forward, self.gradients)


def client_memory(
    model: PreTrainedModel, settings: TrainingSettings, loaded: Mapping[str, Any] | None = None
) -> ClientMemory:
    """The estimate for a client that trains what requires a gradient in ``model``.

    Args:
        model: a causal LM, with or without LoRA; may be an outline on the device ``meta``.
        settings: batch, length, checkpointing, autocast.
        loaded: the flags ``dtype``, ``load_in_8bit`` and ``load_in_4bit``, of an outline, whose own dtypes say nothing.

    Raises:
        UserError: it has no known list of decoder layers, or is no causal LM.
    """
    holder, name = decoder_layers(model)
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise UserError(f"The memory that a client needs is known of causal LMs alone, not of {type(model).__name__}.")
    layers = list(getattr(holder, name))
    flags = loaded if loaded and any(one.is_meta for one in model.parameters()) else {}
    sizes = {name: one.numel() * _entry(name, one, flags) for name, one in model.named_parameters()}
    gradients = round(sum(sizes[name] for name, one in model.named_parameters() if one.requires_grad))
    tokens, width = settings.batch_size * settings.seq_length, _of(model, "hidden_size")
    reached = [any(one.requires_grad for one in layer.parameters()) for layer in layers]
    first = 0 if _trains_inputs(model) else reached.index(True) if any(reached) else len(layers)
    size = 2 if settings.bf16 or _is_half(model, flags) else 4
    full = [tokens * _kept_of_layer(layer, model, size, settings.seq_length) for layer in layers[first:]]
    above = tokens * width * 4 * (2 if model.get_output_embeddings().weight.requires_grad else 1)
    activations, logits = above + sum(full), _logits(model, tokens)
    if settings.gradient_checkpointing:  # whose hook has the embeddings' output, and so every layer, need a gradient
        activations = above + len(layers) * tokens * width * size
        logits = max(logits, max(full, default=0) * 2 - above)  # one layer again, with its gradients, after the logits
    held = gradients if settings.gradient_accumulation_steps > 1 else 0
    return ClientMemory(round(sum(sizes.values())), 2 * gradients, gradients, activations, logits, held)


def _entry(name: str, parameter: torch.nn.Parameter, flags: Mapping[str, Any]) -> float:
    """Bytes of an entry of a parameter; of an outline as it will be when loaded by the ``flags``."""
    if not flags or "lora_" in name:
        return parameter.element_size()
    packed = next((size for flag, size in PACKED.items() if flags.get(flag)), None)
    if packed is not None:  # whose other weights are made float32 for training
        return packed if layer_number(name) is not None and parameter.ndim == 2 else 4.0
    return BYTES.get(str(flags.get("dtype")), parameter.element_size())


def _is_half(model: PreTrainedModel, flags: Mapping[str, Any]) -> bool:
    """Whether the layers compute in 16 bits; those of a packed model do not, whose norms and embeddings are float32."""
    if any(flags.get(flag) for flag in PACKED):
        return False
    return _entry("", model.get_input_embeddings().weight, flags) == 2


def _trains_inputs(model: PreTrainedModel) -> bool:
    """Whether something below the layers trains: embeddings or a soft prompt."""
    above = {id(model.get_output_embeddings().weight)} - {id(model.get_input_embeddings().weight)}
    above |= {id(one) for part in model.modules() if "Norm" in type(part).__name__ for one in part.parameters()}
    named = model.named_parameters()
    return any(one.requires_grad and layer_number(name) is None and id(one) not in above for name, one in named)


def _logits(model: PreTrainedModel, tokens: int) -> int:
    bounded = getattr(model.config, "final_logit_softcapping", None) is not None
    return tokens * int(model.get_output_embeddings().weight.shape[0]) * 4 * (LOGIT_COPIES + bounded)


def _of(model: PreTrainedModel, name: str, default: int | None = None) -> int:
    """A number of the model's config.

    Raises:
        UserError: it has none, and there is no default.
    """
    found = getattr(model.config, name, None)
    found = default if found is None else found
    if not isinstance(found, int):
        raise UserError(f"The memory that a client needs is not known of a {type(model).__name__}: no {name}.")
    return found


def _kept_of_layer(layer: torch.nn.Module, model: PreTrainedModel, size: int, length: int) -> int:
    """Bytes a token that the backward pass through a decoder layer keeps; ``size`` of an entry that is no norm's."""
    width, heads = _of(model, "hidden_size"), _of(model, "num_attention_heads")
    head = _of(model, "head_dim", width // heads)
    norms = [part for part in layer.modules() if "Norm" in type(part).__name__]
    trains_norms = any(one.requires_grad for part in norms for one in part.parameters())
    kept = len(norms) * width * 4 * (2 if trains_norms else 1)
    kept += 4 * heads * head * size  # keys and values of grouped heads are repeated
    dropped = max(getattr(model.config, name, None) or 0.0 for name in ("attention_dropout", "attn_pdrop")) > 0
    if dropped or getattr(model.config, "_attn_implementation", "sdpa") == "eager":
        kept += (3 if dropped else 1) * heads * length * size
    dropouts = [(name, part) for name, part in layer.named_modules() if isinstance(part, torch.nn.Dropout)]
    elsewhere = {"lora_dropout", "attn_dropout"}
    kept += sum(part.p > 0 and not elsewhere & {*name.split(".")} for name, part in dropouts) * width * size
    names = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
    inner = _of(model, "intermediate_size", getattr(model.config, "n_inner", None) or 4 * width)
    kept += (3 if names & {"gate_proj", "gate_up_proj"} else 4) * inner * size
    return kept + _kept_inputs(layer, size)


def _kept_inputs(layer: torch.nn.Module, size: int) -> int:
    """Bytes a token of the inputs of linears that train; linears of one part with inputs of one width share them."""
    kept, shared = 0, set()
    for name, part in layer.named_modules():
        adapters = getattr(part, "lora_A", {})
        for adapter, linear in adapters.items():
            if not linear.weight.requires_grad:
                continue
            kept += linear.out_features * linear.weight.element_size()
            if getattr(part.lora_dropout[adapter], "p", 0.0) > 0:
                kept += linear.in_features * 2 * linear.weight.element_size()
            else:
                shared.add((name.rpartition(".")[0], linear.in_features))
        weight = getattr(part, "weight", None)
        if not adapters and weight is not None and weight.ndim == 2 and weight.requires_grad and "lora_" not in name:
            shared.add((name.rpartition(".")[0], int(getattr(part, "in_features", weight.shape[0]))))
    return kept + sum(features for _, features in shared) * size


def measured_peak(model: PreTrainedModel, settings: TrainingSettings) -> int:
    """Bytes of tensors at the peak of a real training step, weights included; the second one, when AdamW has moments.

    The batch is of random tokens, all of ``settings.seq_length``. On a GPU it is the allocator's peak, less what was
    there beside the model; on a CPU the storages of all tensors are followed. Weights and random states are put back.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    before = [one.detach().clone() for one in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0)
    try:
        with training_mode(model, settings.gradient_checkpointing):
            model.train()
            if settings.gradient_checkpointing:
                enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
                enable({"use_reentrant": False})
            _step(model, settings, optimizer)
            moments = [one for state in optimizer.state.values() for one in state.values()]
            held = [*model.parameters(), *model.buffers(), *moments]
            size = sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in held}.values())
            device = trained[0].device
            if device.type == "cuda":
                beside = torch.cuda.memory_allocated(device) - size
                torch.cuda.reset_peak_memory_stats(device)
                _step(model, settings, optimizer)
                return int(torch.cuda.max_memory_allocated(device)) - beside
            with _Storages(held) as followed:
                _step(model, settings, optimizer)
            return size + followed.peak
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)


def _step(model: PreTrainedModel, settings: TrainingSettings, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer step as the clients' Trainer takes it."""
    device, words = next(model.parameters()).device, model.get_input_embeddings().num_embeddings
    for _ in range(settings.gradient_accumulation_steps):
        tokens = torch.randint(words, (settings.batch_size, settings.seq_length)).to(device)
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
        with torch.autocast(device.type, torch.bfloat16) if settings.bf16 else nullcontext():
            loss = model(**batch, use_cache=False).loss
        (loss / settings.gradient_accumulation_steps).backward()
    torch.nn.utils.clip_grad_norm_([one for one in model.parameters() if one.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _Storages(TorchDispatchMode):
    """Follows the storages that operations make, until they are freed; ``known`` tensors' do not count.

    Attributes:
        peak: most bytes of them at a time.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known = {one.untyped_storage()._cdata for one in known}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count what is new of what it gives."""
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self._follow(one.untyped_storage())
        self.peak = max(self.peak, self._now)
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def freed(_: Any) -> None:
            self._now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, freed)
        self._now += size
