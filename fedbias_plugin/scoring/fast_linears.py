"""Linear layers while a model is scored: adapters merged, and on a CPU oneDNN's kernels where they are faster.

Nothing is written into the model. A layer's ``forward`` is covered by one that works on a copy of its weight, merged
and laid out as the kernel likes it, and uncovered afterwards; the weights themselves are never touched.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import cache_folder, write_json_atomic
from fedbias_plugin.memory import free_memory_bytes

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 512
"""Copies of the weights are made for at least so many tokens; for fewer they cost more time than they save."""
FEWEST_FEATURES = 64
"""Narrower layers, such as an adapter's own, are left as they are."""
SWITCH = "FEDBIAS_ONEDNN"
"""Environment variable: 1 or 0 decides instead of the measurement, so that runs agree in every bit."""
FEWEST_WEIGHTS = 4_000_000
"""Smaller models gain little from oneDNN, and a measurement near the limit would not decide alike in every run."""
GAIN = 0.9
"""oneDNN is used where its share of the ordinary kernels' time is below this."""
MEASURED_ROWS = 512
REPEATS = 4
Shapes: TypeAlias = tuple[tuple[tuple[tuple[int, ...], torch.dtype], int], ...]
"""((outputs, inputs), dtype) of linear layers, each with how many there are."""


@dataclass(frozen=True)
class _Layer:
    """A linear layer with its weight as (outputs, inputs), not copied, and the adapters to be added to it."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    adapters: tuple[tuple[Tensor, Tensor, float], ...] = ()

    def merged(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight with its adapters, summed in float32: a new tensor if there are adapters or it is cast."""
        dtype = dtype or self.weight.dtype
        if not self.adapters:
            return self.weight.to(dtype)
        total = self.weight.float()
        for a, b, scale in self.adapters:
            total = torch.addmm(total, b.float(), a.float(), alpha=scale)
        return total.to(dtype)


@contextlib.contextmanager
def fast_linears(
    model: nn.Module, tokens: int, dtype: torch.dtype | None = None, *, but: nn.Module | None = None
) -> Iterator[None]:
    """Let the model's linear layers run on merged and rearranged copies of their weights, as long as there is memory.

    Not where PyTorch is to be deterministic: whether the copies are made depends on free memory and measured time.

    Args:
        model: in inference mode; quantised layers, layers that accelerate moves between devices and adapters other than
            plain LoRA stay as they are.
        tokens: how many the model is about to read.
        dtype: of the copies and of what the layers give, under autocast to the same; None for the layers' own.
        but: a layer that stays as it is.
    """
    covered: list[nn.Module] = []
    try:
        if tokens >= FEWEST_TOKENS and not torch.are_deterministic_algorithms_enabled():
            for layer, forward in _replacements(_linear_layers(model, but), dtype):
                layer.module.forward = forward
                covered.append(layer.module)
        yield
    finally:
        for module in covered:
            del module.forward


def _replacements(
    layers: list[_Layer], dtype: torch.dtype | None
) -> Iterator[tuple[_Layer, Callable[[Tensor], Tensor]]]:
    rearranged = [layer for layer in layers if layer.weight.device.type == "cpu"]
    if not _onednn_pays(rearranged, dtype):
        rearranged = []
        layers = [layer for layer in layers if layer.adapters or dtype]
    if not _fits(layers, dtype):
        _tell_of_memory()
        return
    chosen = {id(layer) for layer in rearranged}
    for layer in layers:
        wanted = dtype or layer.weight.dtype
        bias = None if layer.bias is None else layer.bias.to(wanted)
        forward: Callable[[Tensor], Tensor]
        if id(layer) in chosen:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.merged(wanted).contiguous(), MEASURED_ROWS)
            forward = functools.partial(_onednn_linear, packed, bias)
        elif layer.adapters or dtype:
            forward = functools.partial(linear, weight=layer.merged(wanted), bias=bias)
        else:
            continue
        yield layer, forward if dtype is None else functools.partial(_cast_first, forward, dtype)


def _cast_first(forward: Callable[[Tensor], Tensor], dtype: torch.dtype, states: Tensor) -> Tensor:
    """As one matrix: of a batch of one position PyTorch would copy the weight, turned, at every call."""
    return forward(states.to(dtype).flatten(0, -2)).unflatten(0, states.shape[:-1])


@functools.lru_cache
def _tell_of_memory() -> None:
    """Once, not for every client and benchmark."""
    logger.info("scoring goes on without merged weights, which is slower: there is no memory for the copies")


def _onednn_linear(packed: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")


def _linear_layers(model: nn.Module, but: nn.Module | None = None) -> list[_Layer]:
    """Every float linear layer, one with LoRA as one."""
    layers: list[_Layer] = []
    inside: set[nn.Module] = set() if but is None else {*but.modules()}
    for module in model.modules():
        if module in inside:
            continue
        layer = _lora_layer(module) or _plain_layer(module)
        if layer is not None:
            inside.update(module.modules())
            if min(layer.weight.shape) >= FEWEST_FEATURES:
                layers.append(layer)
    return layers


def _plain_layer(module: nn.Module) -> _Layer | None:
    kind = type(module)
    is_conv1d = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
    if (kind is not nn.Linear and not is_conv1d) or _is_touched(module):
        return None
    weight: Any = module.weight
    if type(weight) is not nn.Parameter or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return None
    bias: Any = module.bias
    return _Layer(module, weight.detach().t() if is_conv1d else weight.detach(), bias)


def _lora_layer(module: Any) -> _Layer | None:
    """A peft layer (0.6 and later) with plain LoRA adapters to be merged."""
    if type(module).__name__ != "Linear" or type(module).__module__ != "peft.tuners.lora.layer":
        return None
    base = _plain_layer(module.base_layer)
    active = [name for name in module.active_adapters if name in module.lora_A]
    special = {*getattr(module, "lora_variant", {}), *(n for n, on in getattr(module, "use_dora", {}).items() if on)}
    special |= {name for name, on in getattr(module, "lora_bias", {}).items() if on}
    if base is None or module.merged or module.disable_adapters or special.intersection(active):
        return None
    inner = [part for name in active for part in (module.lora_A[name], module.lora_B[name])]
    if _is_touched(module) or any(_is_touched(part) or type(part) is not nn.Linear for part in inner):
        return None
    if _has_hooks(module.base_layer) or any(map(_has_hooks, inner)):
        return None
    adapters = tuple((module.lora_A[n].weight, module.lora_B[n].weight, module.scaling[n]) for n in active)
    return _Layer(module, base.weight, base.bias, adapters)


def _is_touched(module: Any) -> bool:
    """Whether its forward is someone else's already: accelerate's, or a user's."""
    return "forward" in module.__dict__ or hasattr(module, "_hf_hook")


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call of it would do more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fits(layers: list[_Layer], dtype: torch.dtype | None) -> bool:
    """Whether copies of the weights take at most half of the memory that is free where they are."""
    needed: Counter[torch.device] = Counter()
    for layer in layers:
        needed[layer.weight.device] += layer.weight.numel() * (dtype or layer.weight.dtype).itemsize
    return all(size <= free_memory_bytes(device) / 2 for device, size in needed.items())


def _onednn_pays(layers: list[_Layer], dtype: torch.dtype | None = None) -> bool:
    """Whether oneDNN would do these layers, on this machine with these threads, in less time."""
    if not layers or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if {dtype or layer.weight.dtype for layer in layers} - {torch.float32, torch.bfloat16}:
        return False
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "0", "1"):
        raise UserError(f"{SWITCH} is {wanted!r}; it must be 0 (ordinary kernels) or 1 (oneDNN), or not be set.")
    if wanted:
        return wanted == "1"
    if sum(layer.weight.numel() for layer in layers) < FEWEST_WEIGHTS:
        return False
    shapes = Counter((tuple(layer.weight.shape), dtype or layer.weight.dtype) for layer in layers)
    return _gain_on_this_machine(tuple(sorted(shapes.items(), key=str)), torch.get_num_threads()) < GAIN


@functools.lru_cache
def _gain_on_this_machine(shapes: Shapes, threads: int) -> float:
    """:func:`_measured_gain`, measured once and then read from the cache: a run that is resumed or repeated on the same
    machine must take the same kernels."""
    machine = f"{platform.node()} {platform.machine()} {torch.__version__} {threads} {shapes}"
    path = cache_folder() / "kernels" / f"{hashlib.sha256(machine.encode()).hexdigest()[:32]}.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["gain"])
    except (OSError, ValueError, KeyError, TypeError):
        gain = _measured_gain(shapes, threads)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a measurement
        write_json_atomic(path, {"machine": machine, "gain": gain})
    return gain


def _measured_gain(shapes: Shapes, threads: int) -> float:
    """oneDNN's share of the ordinary kernels' time, over one layer of each shape and dtype, weighed by their number."""
    ordinary = onednn = 0.0
    for (shape, dtype), count in shapes:
        weight = torch.ones(shape, dtype=dtype)
        states = torch.ones(MEASURED_ROWS if shape[0] < 2**14 else MEASURED_ROWS // 4, shape[1], dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, MEASURED_ROWS)
        calls = functools.partial(linear, states, weight), functools.partial(_onednn_linear, packed, None, states)
        seconds = [[_seconds(call) for call in calls] for _ in range(REPEATS)]
        fastest = [min(column) for column in zip(*seconds, strict=True)]
        ordinary += count * fastest[0]
        onednn += count * fastest[1]
    gain = onednn / ordinary
    chosen = "oneDNN's" if gain < GAIN else "the ordinary"
    logger.info("scoring uses %s CPU kernels (oneDNN takes %.0f%% of the others' time)", chosen, 100 * gain)
    return gain


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
