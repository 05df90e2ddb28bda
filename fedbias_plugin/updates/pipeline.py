"""The stages of a run, as one: what happens to every update between training and averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedbias_plugin.registry import build, names
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.evaluation.assessor import Benchmark
    from fedbias_plugin.poisoning.loaders import Partition
    from fedbias_plugin.run_description import HostRun
    from fedbias_plugin.state import State


class Pipeline:
    """Every stage that the flags ask for, in its order: the attack, then what the registry names.

    Args:
        arguments: the plugin's flags.
        run: what the host does.
        shares: client id -> share of biased rows, where it is known.

    Raises:
        UserError: a stage does not fit the run.
    """

    def __init__(self, arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> None:
        attack = [build("attack", arguments.attack, arguments)] if arguments.attack != "none" else []
        others: list[Stage] = [build("stage", name, arguments) for name in names("stage")]
        chosen = [*attack, *(stage for stage in others if stage.is_on)]
        self._stages: list[Stage] = sorted(chosen, key=lambda stage: stage.order)
        for stage in self._stages:
            stage.prepare(arguments, run, shares)

    @property
    def attackers(self) -> frozenset[int]:
        """The clients that a stage makes attackers of."""
        return frozenset(client for stage in self._stages for client in stage.attackers)

    def on_data(
        self, partition: Partition | None, benchmarks: Mapping[str, Benchmark]
    ) -> tuple[Partition | None, list[str]]:
        """The rows the clients train on after every stage, and what a reader of the numbers must know.

        Raises:
            UserError: a stage cannot work with these rows.
        """
        warnings: list[str] = []
        for stage in self._stages:
            warnings += stage.warnings
            partition = stage.on_data(partition, benchmarks) if partition else None
        return partition, warnings

    def receive(self, updates: dict[int, Update], theta: State, number: int) -> None:
        """Take ``updates`` (by client id, changed in place) of round ``number`` through every stage."""
        for stage in self._stages:
            updates |= {c: stage.at_client(update, theta, number, len(updates)) for c, update in updates.items()}
        for stage in self._stages:
            stage.at_server(updates, theta, number)

    def state_dict(self) -> list[dict[str, Any]]:
        """What every stage must know to go on, in order."""
        return [stage.state_dict() for stage in self._stages]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take up what :meth:`state_dict` gave."""
        for stage, state in zip(self._stages, states, strict=True):
            stage.load_state_dict(state)
