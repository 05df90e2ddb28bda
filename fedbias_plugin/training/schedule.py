"""Who trains in a round, on which rows, at which learning rate: OpenFedLLM's draws, number for number.

OpenFedLLM reseeds Python's global generator with the round number for each draw, so that its clients and rows are the
same under every seed. Here the draws come from generators of their own; the global random state is left alone.
``schedule_seed`` (not in OpenFedLLM) makes them differ between seeds.
"""

from __future__ import annotations

import math
import random

from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import local_client

LAST_LEARNING_RATE = 1e-6


def cosine_learning_rate(
    round_idx: int, num_rounds: int, learning_rate: float, last: float = LAST_LEARNING_RATE
) -> float:
    """Learning rate of round ``round_idx`` (from 0): half a cosine from ``learning_rate`` down to ``last``.

    >>> cosine_learning_rate(0, 4, 1e-3), round(cosine_learning_rate(2, 4, 1e-3), 7)
    (0.001, 0.0005005)
    """
    return last + 0.5 * (learning_rate - last) * (1 + math.cos(math.pi * round_idx / num_rounds))


def clients_this_round(
    fed_alg: str, num_clients: int, sample_clients: int, round_idx: int, schedule_seed: int | None = None
) -> list[int]:
    """Sorted ids of the clients that train in round ``round_idx`` (from 0).

    ``localN`` trains client N alone; more ``sample_clients`` than clients means all of them.
    """
    alone = local_client(fed_alg)
    if alone is not None:
        return [alone]
    if num_clients < sample_clients:
        return list(range(num_clients))
    generator = _generator("clients", round_idx, schedule_seed)
    return sorted(generator.sample(range(num_clients), sample_clients))


def rows_this_round(
    n: int,
    round_idx: int,
    batch_size: int,
    gradient_accumulation_steps: int,
    max_steps: int,
    schedule_seed: int | None = None,
) -> list[int]:
    """Indices, in training order before the Trainer's shuffle, of the rows a client with ``n`` rows uses in a round.

    As many as ``max_steps`` optimizer steps need, without repeats, or all ``n`` when there are fewer. Clients of the
    same size draw the same indices.

    Raises:
        UserError: a count is not positive.
    """
    wanted = batch_size * gradient_accumulation_steps * max_steps
    if wanted < 1:
        raise UserError(
            f"--batch_size {batch_size}, --gradient_accumulation_steps {gradient_accumulation_steps} and --max_steps "
            f"{max_steps} must be at least 1; to train on all rows give --local_epochs."
        )
    return _generator("rows", round_idx, schedule_seed).sample(range(n), min(wanted, n))


def seed_of_client(schedule_seed: int, round_idx: int, client: int) -> int:
    """The Trainer's seed under ``--schedule_seed``, another one for every client and round (from 0); 31 bits."""
    return random.Random(f"{schedule_seed}/train/{round_idx}/{client}").getrandbits(31)


def _generator(purpose: str, round_idx: int, schedule_seed: int | None) -> random.Random:
    """Seeded by the round alone, as in OpenFedLLM, or by the schedule seed, the purpose and the round."""
    return random.Random(round_idx if schedule_seed is None else f"{schedule_seed}/{purpose}/{round_idx}")
