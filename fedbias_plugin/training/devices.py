"""Clients whose devices differ: which of the last layers each can train (FedBiAlign, as a course report outlines it).

How a device's size picks its adapter is this package's choice: by the estimate of
:mod:`fedbias_plugin.training.client_memory`, whose parts are documented there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.training.client_memory import client_memory
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.offsite_flags import memory_of_clients
from fedbias_plugin.training.surgery import layer_number

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@contextmanager
def training_last(parameters: Mapping[str, torch.nn.Parameter], layers: int) -> Iterator[None]:
    """Let the parameters of the last ``layers`` alone, of those given by their names in the model, have gradients."""
    numbers = {name: layer_number(name) or 0 for name in parameters}
    first = max(numbers.values()) + 1 - layers
    frozen = [one for name, one in parameters.items() if numbers[name] < first and one.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def fitted(
    model: PreTrainedModel,
    parameters: Mapping[str, torch.nn.Parameter],
    choices: Sequence[int],
    flags: Mapping[str, Any],
) -> list[int]:
    """How many of the last layers each client trains: the largest of ``choices`` whose estimated memory it has.

    Args:
        model: what clients train in; may be an outline.
        parameters: name in the whole model -> parameter of ``model`` that a client may train.
        choices: the smallest first.
        flags: all flags of the run.

    Raises:
        UserError: a client has too little for any; it is named, with what it needs.
    """
    settings, needs = TrainingSettings.of(flags), {}
    for layers in choices:
        with training_last(parameters, layers):
            needs[layers] = client_memory(model, settings, flags).total
    sizes, least = memory_of_clients(str(flags["client_memory_mb"]), flags["num_clients"]), choices[0]
    for client, size in enumerate(sizes):
        if size < needs[least]:
            raise UserError(
                f"Client {client} needs {needs[least] / 2**20:.1f} MiB to train an adapter of {least} layer(s), and "
                f"--client_memory_mb gives it {size / 2**20:.1f}: raise that or --ot_drop_ratio, or lower "
                "--batch_size, --seq_length or the number of layers."
            )
    chosen = [max(layers for layers in choices if needs[layers] <= size) for size in sizes]
    told = ", ".join(f"client {client}: {layers}" for client, layers in enumerate(chosen))
    estimates = ", ".join(f"{layers}: {need / 2**20:.1f} MiB" for layers, need in needs.items())
    logger.info("layers trained: %s (estimated need of %s)", told, estimates)
    if max(chosen) < choices[-1]:
        message = "no device can train the lowest %d of the adapter's %d layers: they stay as they are"
        logger.warning(message, choices[-1] - max(chosen), choices[-1])
    return chosen
