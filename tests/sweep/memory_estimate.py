"""The estimates in ``configs/models``: memory of one GPU under given flags, counted without the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.registry import build

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
RESERVE = 1.0
"""GiB: the CUDA context, its libraries and what the allocator cannot use."""
INT8, NF4 = 1.0, 0.516
"""Bytes a weight: int8, and nf4 with doubly quantised scales (4.127 bits; Dettmers et al. 2023, arXiv:2305.14314)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The terms of the estimate, in bytes.

    Attributes:
        parameters: how many weights the model has, tied ones once, adapters left out.
        trained: how many are trained: the adapters', or all.
        weights: the model's weights. Linear layers but the head take 1 byte each in 8 bits and 0.516 in 4; the others
            take 4 then (peft turns them to float32). Without quantisation every weight has the bytes of ``dtype``.
        training: of what is trained, the gradient and AdamW's two moments, and for adapters the weights themselves, all
            in float32: 16 bytes an adapter weight. With every weight trained three times the bytes of ``dtype``.
        activations: kept for the backward pass. Per token of a batch and linear layer its input and output in the
            dtype of the computation (2 bytes under ``bf16`` or unquantised bfloat16, else 4), and for a layer with an
            adapter its input twice in float32 (before and after dropout). With ``gradient_checkpointing`` of one
            decoder layer at a time, and the hidden state before each. Attention scores are not counted: no kernel that
            is usual on GPUs keeps them.
        logits: tokens of a batch times vocabulary times 12 bytes (in float32, their log-softmax, their gradient) and
            twice the bytes of the computation (as they leave the head, and their gradient).
    """

    parameters: int
    trained: int
    weights: float
    training: float
    activations: float
    logits: float

    @property
    def load_gib(self) -> float:
        """GiB to hold the model: the weights and :data:`RESERVE`. Scoring takes less than 1 GiB more."""
        return self.weights / GIB + RESERVE

    @property
    def train_gib(self) -> float:
        """GiB at the peak of a training step: all terms and :data:`RESERVE`.

        FedProx and SCAFFOLD add one to two times the trained weights. States that wait for the server are on the CPU.
        """
        return self.load_gib + (self.training + self.activations + self.logits) / GIB


def memory_estimate(config: Any, arguments: Mapping[str, Any]) -> MemoryEstimate:
    """Count the weights of a model of ``config`` on the meta device, and what ``arguments`` make of them.

    Args:
        config: of a causal LM, as ``AutoConfig`` gives it.
        arguments: flags of ``fedbias run``; those that are missing have their defaults, others are not looked at.

    Raises:
        UserError: a flag has a wrong value, or the adapters fit no module of the model.
    """
    known = {spec.name for spec in fields(HostArguments)}
    host = HostArguments(**{name: value for name, value in arguments.items() if name in known})
    model = _on_meta(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    linears = _linear_layers(model)
    adapted, trained = _adapt(model, host) if host.use_peft else ([], parameters)
    linear_weights = sum(inputs * outputs for inputs, outputs in linears)
    bytes_of_dtype = 2 if host.dtype == "bfloat16" else 4
    is_quantised = host.load_in_8bit or host.load_in_4bit
    computed = 2 if host.bf16 or (bytes_of_dtype == 2 and not is_quantised) else 4
    if is_quantised:
        weights = linear_weights * (INT8 if host.load_in_8bit else NF4) + 4 * (parameters - linear_weights)
    else:
        weights = parameters * bytes_of_dtype
    tokens, text = host.batch_size * host.seq_length, config.get_text_config()
    per_token = computed * sum(map(sum, linears)) + 8 * sum(inputs for inputs, _ in adapted)
    if host.gradient_checkpointing:
        layers = text.num_hidden_layers
        per_token = per_token / layers + computed * layers * text.hidden_size
    return MemoryEstimate(
        parameters=parameters,
        trained=trained,
        weights=weights,
        training=trained * (16 if host.use_peft else 3 * bytes_of_dtype),
        activations=tokens * per_token,
        logits=tokens * text.vocab_size * (12 + 2 * computed),
    )


def _on_meta(config: Any) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _linear_layers(model: PreTrainedModel) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear layer but the head; GPT-2's are Conv1D, which lie the other way round."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    modules = [module for module in model.modules() if module is not head]
    plain = [(module.in_features, module.out_features) for module in modules if isinstance(module, torch.nn.Linear)]
    turned = [(module.weight.shape[0], module.weight.shape[1]) for module in modules if isinstance(module, Conv1D)]
    return plain + turned


def _adapt(model: PreTrainedModel, host: HostArguments) -> tuple[list[tuple[int, int]], int]:
    """(inputs, outputs) of the layers that get an adapter, and how many weights the adapters have."""
    adapted = build("trainable", "lora", host).prepare(model, seed=0)
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return [(layer.in_features, layer.out_features) for layer in layers], trained
