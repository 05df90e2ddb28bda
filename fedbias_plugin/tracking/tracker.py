"""Where a run's numbers go: the contract of a tracker, and the group that feeds those that were asked for.

``metrics.jsonl`` is always written, and first: no other tracker can lose a number, because one that fails is switched
off with one warning while the run goes on.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedbias_plugin.extension import Extension
from fedbias_plugin.options import check_choice, split_list
from fedbias_plugin.registry import build, names
from fedbias_plugin.tracking.records import RoundRecord, RunInfo

logger = logging.getLogger(__name__)


class Tracker(Extension):
    """Receives one run: ``start``, then ``log_round`` once a round, then ``finish`` or ``abort``.

    ``state_dict`` says what the tracker of a process that resumes the run must know; it is loaded before ``start``.
    """

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Open the run."""

    @abstractmethod
    def log_round(self, record: RoundRecord) -> None:
        """Take one round."""

    @abstractmethod
    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the run; ``summary`` is what ``summary.json`` holds."""

    def abort(self, reason: str) -> None:  # most trackers have nothing to close
        """Close a run that failed; ``reason`` is one line."""


def build_trackers(spec: str, arguments: Any = None, *, extra: Sequence[Tracker] = ()) -> TrackerGroup:
    """Build the trackers of ``--track``; ``jsonl`` comes first whether it is named or not.

    Args:
        spec: names separated by commas, such as ``"jsonl,wandb"``; empty or ``none`` is ``jsonl`` alone.
        arguments: where a tracker finds its own flags; it may be None for those that have none.
        extra: trackers that the host adds, fed after the named ones.

    Raises:
        UserError: an unknown name, with the nearest known one.
    """
    for name in split_list(spec):
        check_choice("track", name, names("tracker"))
    chosen = dict.fromkeys(name for name in split_list(spec) if name != "jsonl")
    others = [build("tracker", name, arguments) for name in chosen]
    return TrackerGroup(build("tracker", "jsonl", arguments), [*others, *extra])


class TrackerGroup(Tracker):
    """Feeds several trackers.

    Errors of ``primary`` (``metrics.jsonl``) end the run: numbers would be lost. Any other tracker that raises is
    dropped with one warning.

    Args:
        primary: fed first.
        others: fed in this order.
    """

    name = "group"

    def __init__(self, primary: Tracker, others: Sequence[Tracker] = ()) -> None:
        self.primary = primary
        self.others = list(others)

    def start(self, run: RunInfo) -> None:
        self._feed(lambda tracker: tracker.start(run))

    def log_round(self, record: RoundRecord) -> None:
        self._feed(lambda tracker: tracker.log_round(record))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._feed(lambda tracker: tracker.finish(summary))

    def abort(self, reason: str) -> None:
        self._feed(lambda tracker: tracker.abort(reason))

    def state_dict(self) -> dict[str, Any]:
        """Name of a tracker -> its state, for those that have one."""
        states: dict[str, Any] = {}
        self._feed(lambda tracker: states.update({tracker.name: tracker.state_dict()}))
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._feed(lambda tracker: tracker.load_state_dict(state[tracker.name]) if tracker.name in state else None)

    def _feed(self, call: Callable[[Tracker], None]) -> None:
        call(self.primary)
        for tracker in list(self.others):
            try:
                call(tracker)
            except Exception as error:
                self.others.remove(tracker)
                first_line = (str(error).splitlines() or [""])[0]
                logger.warning(
                    "The tracker %r failed and is off from here on (%s: %s). The run goes on; every number is in the "
                    "files of the output folder.",
                    tracker.name,
                    type(error).__name__,
                    first_line,
                )
