"""A float32 model scored in bfloat16: matrix products in the units that the machine has for it, all else in float32.

PyTorch's autocast does it, so that sums along the layers, norms and the log-softmax stay float32 and any model that
can be trained in mixed precision can be scored so; :mod:`fast_linears` holds the cast weights for one scoring call.
On a CPU the LM head multiplies in bfloat16 too, but gives float32: in bfloat16 a logit of 16 has steps of an eighth,
an error eight times that of all other layers together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring.fast_linears import fast_linears
from fedbias_plugin.scoring.inference import embedding_device

FLOAT32, BFLOAT16, AUTO = "float32", "bfloat16", "auto"
BF16_UNITS = ("amx_bf16", "avx512_bf16", "avx_bf16", "bf16")
"""Flags of a CPU that multiplies bfloat16 numbers by itself; the last is Arm's."""
FAST_UNITS = frozenset(BF16_UNITS[:2])
"""Those with which bfloat16 is known to be faster here than float32."""
CPU_INFO = Path("/proc/cpuinfo")


def cpu_bf16_units(info: Path = CPU_INFO) -> str:
    """The CPU's units for bfloat16: ``amx_bf16 avx512_bf16``, ``none``, or ``unknown`` where Linux does not say."""
    flags = cpu_rows(info, "flags") or cpu_rows(info, "Features")
    return " ".join(unit for unit in BF16_UNITS if unit in flags[0].split()) or "none" if flags else "unknown"


def cpu_rows(info: Path, key: str) -> list[str]:
    """The values of ``key`` in Linux's description of the CPU, one a core; none elsewhere."""
    rows = info.read_text().splitlines() if info.exists() else []
    pairs = [row.partition(":")[::2] for row in rows]
    return [value.strip() for name, value in pairs if name.strip() == key]


def own_dtype(model: Any) -> str:
    """What the model's embeddings are in: ``float32``, ``bfloat16``, ..."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return str((next(model.parameters()) if weight is None else weight).dtype).removeprefix("torch.")


def obstacle(model: Any) -> str:
    """Why ``model`` cannot be scored in another type than its own; empty if it can."""
    own = own_dtype(model)
    if own == BFLOAT16:
        return ""
    if getattr(model.config, "quantization_config", None) is not None:
        return "a quantised model computes in a type of its own"
    if own != FLOAT32:
        return f"this one is in {own}"
    return "" if isinstance(model.get_output_embeddings(), nn.Module) else "this one has no LM head"


def units_missing(model: Any) -> str:
    """Why bfloat16 is not faster where ``model`` is; empty if it is."""
    device = embedding_device(model)
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return "" if has else f"{torch.cuda.get_device_name(device)} has no units for bfloat16"
    if device.type != "cpu":
        return f"of {device.type} it is not known whether it has units for bfloat16"
    known = cpu_bf16_units(CPU_INFO)
    if FAST_UNITS.isdisjoint(known.split()):
        return f"the CPU has no matrix units for bfloat16 ({' or '.join(sorted(FAST_UNITS))}; it has: {known})"
    return ""


def check_dtype(model: Any, dtype: str) -> None:
    """Refuse a model that cannot be scored in ``dtype``.

    Raises:
        UserError: naming what the model is.
    """
    if dtype == BFLOAT16 and (why := obstacle(model)):
        raise UserError(f"--scoring_dtype bfloat16 is for causal LMs in float32, and {why}: leave the flag out.")


@contextlib.contextmanager
def scoring_kernels(model: Any, tokens: int, dtype: str) -> Iterator[None]:
    """:func:`fast_linears`, with ``dtype`` ``bfloat16`` of a float32 model in bfloat16.

    Memory beside the model's: half of that of its linear weights, the LM head's aside, while the block lasts, or that
    of one layer where this does not fit. Nothing is written into the model.

    Raises:
        UserError: the model's own code mixes types that autocast does not reconcile.
    """
    if dtype != BFLOAT16 or own_dtype(model) != FLOAT32:
        with fast_linears(model, tokens):
            yield
        return
    kind = "cuda" if embedding_device(model).type == "cuda" else "cpu"
    head = model.get_output_embeddings() if kind == "cpu" else None
    copies = fast_linears(model, tokens, torch.bfloat16, but=head)
    try:
        # The cache would hold a second copy of weights that are trained.
        with copies, _float32_from(head), torch.autocast(kind, torch.bfloat16, cache_enabled=False):
            yield
    except RuntimeError as error:
        if "dtype" not in str(error) and "scalar type" not in str(error):
            raise
        raise UserError(f"this model cannot be scored in bfloat16 ({error}): give --scoring_dtype float32.") from error


@contextlib.contextmanager
def _float32_from(head: nn.Module | None) -> Iterator[None]:
    """Let ``head`` give float32 under autocast, its factors rounded to bfloat16 where oneDNN can (AMX)."""
    if head is None:
        yield
        return
    before, forward = head.__dict__.get("forward"), head.forward

    def in_float32(states: torch.Tensor) -> Any:
        with torch.autocast("cpu", enabled=False), _bfloat16_factors():
            return forward(states.float())

    head.forward = in_float32
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before


@contextlib.contextmanager
def _bfloat16_factors() -> Iterator[None]:
    """Float32 products on a CPU with bfloat16 factors; older versions of PyTorch compute them in float32."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(settings, "fp32_precision", None)
    if before is None:
        yield
        return
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
