"""Which share of each client's rows is biased (Zhao et al., the data scenarios of their experiments)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import check_choice
from fedbias_plugin.poisoning.draws import generator, permuted


@dataclass(frozen=True, slots=True)
class Scenario:
    """Either ``roles`` (shares of the first clients; the others are clean) or ``everywhere`` (one share for all)."""

    name: str
    description: str
    roles: tuple[float, ...] = ()
    everywhere: float | None = None


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("3B", "three clients hold biased rows only", roles=(1.0, 1.0, 1.0)),
        Scenario("3C", "all clients hold clean rows only", roles=(0.0, 0.0, 0.0)),
        Scenario("1B2C", "one client holds biased rows only, the others clean rows only", roles=(1.0, 0.0, 0.0)),
        Scenario("2B1C", "two clients hold biased rows only, the others clean rows only", roles=(1.0, 1.0, 0.0)),
        Scenario("mix-1B2C", "one third of every client's rows is biased", everywhere=1 / 3),
        Scenario("mix-2B1C", "two thirds of every client's rows are biased", everywhere=2 / 3),
        Scenario("custom", "the shares given with --biased_shares, client by client"),
    )
}


def biased_shares(scenario: str, num_clients: int, seed: int, custom: Sequence[float] | None = None) -> list[float]:
    """The biased share of every client, by client id; each in [0, 1].

    Scenarios with roles need as many clients as roles; further clients are clean, so ``3B`` with ten clients is three
    poisoned clients among ten. ``seed`` permutes which client ids have which role. ``custom`` shares belong to the
    client ids as they are written and are not permuted.

    Raises:
        UserError: an unknown scenario, too few clients, or custom shares that do not fit the clients.
    """
    check_choice("scenario", scenario, SCENARIOS)
    if num_clients < 1:
        raise UserError(f"--num_clients must be at least 1, got {num_clients}.")
    known = SCENARIOS[scenario]
    if scenario == "custom":
        return _custom_shares(num_clients, custom)
    if custom is not None:
        raise UserError(f"--biased_shares belongs to --scenario custom, not to {scenario!r}.")
    if known.everywhere is not None:
        return [known.everywhere] * num_clients
    if num_clients < len(known.roles):
        raise UserError(
            f"--scenario {scenario} needs at least {len(known.roles)} clients, but --num_clients is {num_clients}; for "
            f"fewer clients write --scenario custom --biased_shares with one share per client, such as 1,0."
        )
    roles = [*known.roles, *[0.0] * (num_clients - len(known.roles))]
    return permuted(roles, generator("roles", seed))


def _custom_shares(num_clients: int, custom: Sequence[float] | None) -> list[float]:
    if not custom:
        raise UserError("--scenario custom needs --biased_shares, one share per client, such as 1,0,0,0.5.")
    if len(custom) != num_clients:
        raise UserError(
            f"--biased_shares holds {len(custom)} shares, but --num_clients is {num_clients}; give one per client."
        )
    for share in custom:
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise UserError(f"--biased_shares must be numbers between 0 and 1, got {share}.")
    return [float(share) for share in custom]


def biased_row_count(share: float, rows: int) -> int:
    """Biased rows of a client that holds ``rows`` rows: ``share * rows`` to the nearest, a half to the even number.

    >>> biased_row_count(1 / 3, 100), biased_row_count(0.5, 5), biased_row_count(0.5, 7)
    (33, 2, 4)
    """
    return round(share * rows)
