"""The session for a federated loop of one's own: keyword arguments in, plain ``state_dict()`` both ways."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation import session
from fedbias_plugin.federation.session import HostRun
from fedbias_plugin.flags import build, field_types, known_keywords, named_as_keywords
from fedbias_plugin.hosts.builtin.arguments import NOT_HERE, OF_THE_LOOP, HostArguments
from fedbias_plugin.hosts.builtin.output_folder import check_output_dir
from fedbias_plugin.progress import Progress
from fedbias_plugin.state import State
from fedbias_plugin.tasks.templates import CHAT
from fedbias_plugin.training.base import check_host_trains
from fedbias_plugin.training.plain_states import PlainStates
from fedbias_plugin.updates.base import Update

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

S = TypeVar("S", bound="BiasSession")

WHERE = "BiasSession.create()"


class BiasSession(session.BiasSession):
    """Deals rows to your loop's clients, weighs their states, measures the global model, writes a record a round.

    Make it with :meth:`create`. In every round call :meth:`before_aggregation` with the clients' states, average what
    it returns, load the average into the model, and call :meth:`after_aggregation`. As a context manager it closes
    itself, and marks the run failed where the block raises.
    """

    @classmethod
    def create(
        cls: type[S],
        output_dir: str | os.PathLike[str],
        *,
        config: Mapping[str, Any] | None = None,
        prompt: Callable[[str], str] | None = None,
        progress: Progress | None = None,
        resume: Mapping[str, Any] | None = None,
        **flags: Any,
    ) -> S:
        """A session from the names of flags: ``create("runs/mine", num_clients=3, num_rounds=2, aggregation="bama")``.

        Reads and checks all data and writes nothing; the first round writes the run's files.

        Args:
            output_dir: the run's folder; must not hold another run.
            config: what else to record of the run in ``run.json``, JSON-ready, such as your learning rate.
            prompt: instruction -> the text up to where the response begins, for the held-out loss; without it as the
                plugin's ``template``.
            progress: draws the bars; none without it.
            resume: what :meth:`state_dict` gave after an earlier round of a run in ``output_dir``, to go on after it.
            flags: any flag of the plugin (``aggregation``, ``scenario``, ``data_dir``, ``bias_benchmarks``, ...), and
                of the loop ``num_clients``, ``num_rounds``, ``sample_clients`` (clients a round; all), ``fed_alg``
                (``fedavg``: how your server averages), ``seed``, ``template``, ``seq_length``. Defaults are those of
                ``fedbias run``.

        Raises:
            UserError: an unknown name (with the nearest one), a value out of range, flags that contradict each other,
                a data set that is missing or too small, or a folder that cannot be used.
        """
        with named_as_keywords():
            host, bias = _arguments(flags)
            output = Path(output_dir) if resume is not None else check_output_dir(os.fspath(output_dir))
        if host.template == CHAT and prompt is None:
            raise UserError(
                f"{WHERE}: the template {CHAT!r} is that of your tokenizer: give prompt="
                "fedbias_plugin.tasks.chat.ChatTemplate(tokenizer).prompt."
            )
        recorded = {"output_dir": str(output), **host.of_the_loop, **dataclasses.asdict(bias), **(config or {})}
        run = HostRun(output, config=recorded, prompt=prompt, **host.of_the_loop)
        made = cls(bias, run, progress)
        if made.kept_by_stages:
            raise UserError(
                f"{WHERE}: {', '.join(made.kept_by_stages)} stays with every client between rounds, and your own loop "
                "does not know of it; give psm_residual=False, or use fedbias run."
            )
        if resume is not None:
            made.load_state_dict(resume)
        return made

    def before_aggregation(
        self,
        round_number: int,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        global_state: State,
        local_states: Mapping[int, State],
        sample_counts: Mapping[int, int],
        train_losses: Mapping[int, float] | None = None,
        extra: Mapping[int, dict[str, float]] | None = None,
    ) -> Mapping[int, State]:
        """Measure every client's state on the probe items, weigh it, and return the states that you are to average.

        Args:
            round_number: 1 for the first trained round.
            model: the live model; each state is loaded into it to be scored, then the global state.
            tokenizer: the model's.
            global_state: theta, name -> tensor, from which the clients started; not modified. A copy of
                ``model.state_dict()``, tied weights and buffers included, or of the trained parameters alone.
            local_states: client id -> theta_i, likewise, for exactly the clients of this round.
            sample_counts: client id -> n_i, rows the client trained on.
            train_losses: client id -> mean training loss of the round, nats per token.
            extra: client id -> further numbers of it in this round, by name, to be recorded.

        Returns:
            client id -> state under the names that were given, without the clients whose update was refused (average
            what is there); empty when all were, and the global state is to stay. A rule's weights are in the states:
            average them as you always do, weighted by rows or evenly.

        Raises:
            UserError: an update cannot be used, and ``on_bad_update`` is ``stop``; a state shares its memory with the
                model, does not fit it, or changes what is not trained; a client is unknown or has no rows. Client,
                tensor and fault are named.
        """
        _check_clients(local_states, sample_counts, self._run.num_clients)
        plain = PlainStates(model, global_state, local_states)
        losses, others = train_losses or {}, extra or {}
        updates = {
            client: Update(client, state, sample_counts[client], losses.get(client), extra=dict(others.get(client, {})))
            for client, state in plain.local_states.items()
        }
        return plain.restored(self.receive(round_number, updates, plain.global_state, model=model, tokenizer=tokenizer))

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failure=None if error is None else f"{type(error).__name__}: {error}")


def _check_clients(local_states: Mapping[int, State], sample_counts: Mapping[int, int], num_clients: int) -> None:
    """Refuse a round whose clients the session does not know, or does not know the rows of."""
    for client in local_states:
        if client not in range(num_clients):
            raise UserError(f"local_states has client {client!r}, but the clients are 0 to {num_clients - 1}.")
        if sample_counts.get(client, 0) < 1:
            raise UserError(f"sample_counts must say how many rows client {client} trained on, at least 1.")


def _arguments(flags: Mapping[str, Any]) -> tuple[HostArguments, BiasArguments]:
    """The flags of the loop and of the plugin, checked."""
    for name in sorted((field_types(HostArguments).keys() - {*OF_THE_LOOP}) & flags.keys()):
        raise UserError(f"{WHERE}: {name} is for your own loop to use; to record it, config={{{name!r}: ...}}.")
    for name in sorted({"task", "trainable"} & flags.keys()):
        raise UserError(f"{WHERE}: {name} belongs to fedbias run; your own loop decides what is trained, and how.")
    known = known_keywords(WHERE, flags, (HostArguments, BiasArguments), NOT_HERE)
    bias = build(BiasArguments, [(WHERE, known)])
    check_host_trains(bias)
    if bias.split is not None and bias.split.num_clients is not None:
        known = {"num_clients": bias.split.num_clients, **known}
    return build(HostArguments, [(WHERE, known)]), bias
