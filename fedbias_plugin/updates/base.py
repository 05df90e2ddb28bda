"""An update, and the contract of a stage that it passes.

A new stage is one file beside this one and its name in the registry. Importing its file imports no torch: its flags are
read for every ``--help``.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.evaluation.assessor import Benchmark, Measurement
    from fedbias_plugin.poisoning.loaders import Partition
    from fedbias_plugin.run_description import HostRun
    from fedbias_plugin.state import State


@dataclass
class Update:
    """What the server knows of one client in a round.

    Attributes:
        client: its id.
        state: theta_i as it is now on its way; never modified in place.
        rows: n_i, rows the client trained on.
        loss: mean training loss of the round, nats per token; None where it reports none.
        norm: L2 norm of theta_i - theta; None before it was checked, or where it has no finite one.
        fault: why it cannot be used, as a phrase without client and round; None for a good update.
        measured: its bias on the probe items; None when nobody measured.
        extra: further numbers of the client in this round, by name.
    """

    client: int
    state: State
    rows: int
    loss: float | None = None
    norm: float | None = None
    fault: str | None = None
    measured: Measurement | None = None
    extra: dict[str, float] = field(default_factory=dict)


@dataclass
class Stage(ABC):  # noqa: B024  # every half is optional
    """Something on the way of an update. Its fields are its flags (``option``).

    Attributes:
        order: stages of a smaller one come first.
    """

    order: ClassVar[int] = 0

    @property
    def is_on(self) -> bool:
        """Whether its flags ask for it."""
        return True

    @property
    def attackers(self) -> frozenset[int]:
        """The clients that it makes attackers of."""
        return frozenset()

    @property
    def warnings(self) -> list[str]:
        """What a reader of the run's numbers must know."""
        return []

    def prepare(self, arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> None:  # noqa: B027
        """Called once, before the data are dealt; ``shares``: client id -> share of biased rows, where it is known.

        Raises:
            UserError: the stage does not fit the run.
        """

    def on_data(self, partition: Partition, benchmarks: Mapping[str, Benchmark]) -> Partition:
        """The rows the clients train on; ``partition`` is not modified.

        Raises:
            UserError: the stage cannot work with these rows.
        """
        return partition

    def at_client(self, update: Update, theta: State, number: int, clients: int) -> Update:
        """The update as the client sends it, in round ``number`` (from 1) of so many ``clients``; theta is global."""
        return update

    def at_server(self, updates: dict[int, Update], theta: State, number: int) -> None:  # noqa: B027
        """What the server does with what it receives: changes entries of ``updates``, by client id."""

    def state_dict(self) -> dict[str, Any]:
        """What the stage must know to go on after a round, JSON-ready; a checkpoint keeps it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up what :meth:`state_dict` gave."""
