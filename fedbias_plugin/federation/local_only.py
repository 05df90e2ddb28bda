"""Every client alone: what it has without the federation, beside what the federation gives it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from fedbias_plugin.federation.client import Client
from fedbias_plugin.state import State


def local_only(
    client: Client,
    start: State,
    features: Mapping[int, Sequence[dict[str, Any]]],
    rounds: Sequence[Collection[int]],
    advance: Callable[[], None],
) -> Iterator[tuple[int, State]]:
    """Client id -> its model after the rounds it takes part in, each round from its own last state.

    Rows, steps, learning rates and seeds are those of the run. What belongs to its algorithm (FedProx, SCAFFOLD) is
    left out, and so is what happens to an update on its way.

    Args:
        client: trains; its terms are not used.
        start: the state that the run began with.
        features: client id -> rows.
        rounds: who takes part in each.
        advance: called after every client.
    """
    alone = Client(
        client.model,
        (),
        trainable=client.trainable,
        task=client.task,
        settings=client.settings,
        pad_token_id=client.pad_token_id,
        after_step=client.after_step,
    )
    for number in sorted(features):
        state = start
        for round_idx, chosen in enumerate(rounds):
            if number in chosen:
                state = dict(alone.fit(alone.begin(number, round_idx, state), features[number]).state)
        yield number, state
        advance()
