"""The stages of a run, as one: what happens to every update between training and averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.base import Transform
from fedbias_plugin.registry import active, build
from fedbias_plugin.updates.base import ServerSide, Stage, Update

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.federation.run_description import HostRun
    from fedbias_plugin.metrics.base import Metric
    from fedbias_plugin.state import State


class Pipeline:
    """Every stage that the flags ask for, in its order: the attack, then what the registry names; and every transform.

    Args:
        arguments: the plugin's flags.
        run: what the host does.
        shares: client id -> share of biased rows, where it is known.

    Raises:
        UserError: a stage does not fit the run.
    """

    def __init__(self, arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> None:
        attack = [build("attack", arguments.attack, arguments)] if arguments.attack != "none" else []
        stages = [stage for stage in active("stage", arguments) if stage.is_for(arguments)]
        self._stages: list[Stage] = sorted([*attack, *stages], key=lambda stage: stage.order)
        self._transforms: list[Transform] = active("transform", arguments)
        self._transforms += [stage for stage in self._stages if isinstance(stage, Transform)]
        for transform in self._transforms:
            transform.read(arguments.data_dir)
        self._seed = run.seed
        for stage in self._stages:
            stage.prepare(arguments, run, shares)

    @property
    def attackers(self) -> frozenset[int]:
        """The clients that a stage makes attackers of."""
        return frozenset(client for stage in self._stages for client in stage.attackers)

    @property
    def keeps(self) -> tuple[str, ...]:
        """Names of the states that stages have the clients keep between rounds."""
        return tuple(name for stage in self._stages for name in stage.keeps)

    @property
    def reads_benchmarks(self) -> bool:
        """Whether a transform must see what the run measures."""
        return any(transform.reads_benchmarks for transform in self._transforms)

    def on_data(
        self, partition: Partition | None, benchmarks: Mapping[str, Metric]
    ) -> tuple[Partition | None, list[str]]:
        """The rows the clients train on after every transform, and what a reader of the numbers must know.

        Raises:
            UserError: a transform cannot work with these rows.
        """
        warnings = [warning for stage in self._stages for warning in stage.warnings]
        for transform in self._transforms:
            if partition is None:
                warnings.append(f"{transform.name}: the host's own rows (--scenario none) stay as they are")
                continue
            partition = transform.apply(partition, benchmarks, self._seed)
            warnings += [] if transform in self._stages else transform.warnings
        return partition, warnings

    def at_client(self, update: Update, theta: State, number: int, clients: int) -> Update:
        """What a client sends in round ``number`` of ``clients``: its update after each stage's client half."""
        for stage in self._stages:
            update = stage.at_client(update, theta, number, clients)
        return update

    def at_server(self, updates: dict[int, Update], theta: State, number: int) -> None:
        """Take ``updates`` (by client id, changed in place) of round ``number`` through every stage's server half."""
        for stage in self._stages:
            stage.at_server(updates, theta, number)

    def on_weights(self, weighting: Weighting, rule: Rule, reports: ClientReports, number: int) -> Weighting:
        """What the host averages by in round ``number``: the rule's ``weighting`` after every stage."""
        for stage in self._stages:
            weighting = stage.on_weights(weighting, rule, reports, number)
        return weighting

    @property
    def changes_result(self) -> bool:
        """Whether a stage looks at the result."""
        return self.has_steps or any(type(stage).on_result is not Stage.on_result for stage in self._stages)

    @property
    def has_steps(self) -> bool:
        """Whether a stage takes steps with the model (:meth:`Stage.step`)."""
        return any(type(stage).step is not Stage.step for stage in self._stages)

    def on_result(self, new: State, theta: State, number: int) -> State:
        """The new global state of round ``number`` after every stage; ``new`` itself where none changes it."""
        for stage in self._stages:
            new = stage.on_result(new, theta, number)
        return new

    def step(self, new: State, theta: State, number: int, server: ServerSide) -> tuple[State, dict[str, float]]:
        """The state after every stage's step with the model, and their numbers."""
        numbers: dict[str, float] = {}
        for stage in self._stages:
            new, found = stage.step(new, theta, number, server)
            numbers |= found
        return new, numbers

    @property
    def changes_base(self) -> bool:
        """Whether a stage changes weights that are not trained."""
        return any(stage.changes_base for stage in self._stages)

    def on_model(self, model: PreTrainedModel) -> None:
        """Show every stage the live model, which holds the global state."""
        for stage in self._stages:
            stage.on_model(model)

    def state_dict(self) -> list[dict[str, Any]]:
        """What every stage must know to go on, in order."""
        return [stage.state_dict() for stage in self._stages]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take up what :meth:`state_dict` gave."""
        for stage, state in zip(self._stages, states, strict=True):
            stage.load_state_dict(state)
