"""Carries out a plan: shows it, starts what is not done, and says at the end what failed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import printable
from fedbias_plugin.sweep.estimate import remaining
from fedbias_plugin.sweep.folder import DONE, TO_RESUME, SweepFolder
from fedbias_plugin.sweep.jobs import Job
from fedbias_plugin.sweep.plan import PlannedRun
from fedbias_plugin.terminal import say
from fedbias_plugin.tracking.formatting import MISSING, length_note, number, term_note, with_interval
from fedbias_plugin.tracking.jsonl import SUMMARY_FILE

logger = logging.getLogger(__name__)

Launch = Callable[[Sequence[Job], Callable[[Job, int | str], None]], None]
LAST_BYTES = 20_000


@dataclass
class Execution:
    """The course of one sweep.

    Args:
        folder: where its runs lie.
        planned: all its runs.
        at_once: how many go on at the same time, for the estimate.
    """

    folder: SweepFolder
    planned: Sequence[PlannedRun]
    at_once: int
    failures: dict[str, str] = field(default_factory=dict)

    def plan_lines(self) -> list[str]:
        """The runs with their states, and how long the rest takes."""
        width = max((len(run.name) for run in self.planned), default=0)
        lines = [f"  {run.name:<{width}}  {self._state(run):<24}  {', '.join(run.experiments)}" for run in self.planned]
        states = [self.folder.state(run) for run in self.planned]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return [*lines, f"{len(self.planned)} runs: {counts}; {remaining(self.folder, self.planned, self.at_once)}"]

    @property
    def done(self) -> int:
        """Runs that are done."""
        return sum(self.folder.state(run) == DONE for run in self.planned)

    def run(self, launch: Launch) -> None:
        """Start every run that is not done; :attr:`failures` names those that failed, and why."""
        jobs = [self._job(run) for run in self.planned if self.folder.state(run) != DONE]
        if jobs:
            launch(jobs, self._ended)

    def _state(self, run: PlannedRun) -> str:
        state = self.folder.state(run)
        return f"{state} after round {self.folder.rounds(run)}" if state == TO_RESUME else state

    def _job(self, run: PlannedRun) -> Job:
        config, output, log = (
            part.absolute() for part in (self.folder.config(run), self.folder.run(run), self.folder.log(run))
        )
        command = (sys.executable, "-m", "fedbias_plugin.sweep.one_run", config, output)
        environment = {
            "FEDBIAS_EXPERIMENTS": ",".join(run.experiments),
            "FEDBIAS_ORIGINAL_SCORES": str(self.folder.shared.absolute()),
        }
        return Job(run.name, tuple(map(str, command)), environment, log)

    def _ended(self, job: Job, outcome: int | str) -> None:
        run = next(run for run in self.planned if run.name == job.name)
        if outcome == 0 and self.folder.state(run) == DONE:
            said = f"finished; {final_numbers(self.folder.run(run))}"
        else:
            why = outcome if isinstance(outcome, str) else f"exit code {outcome}"
            self.failures[run.name] = f"{why}: {last_line(job.log)} (all of it: {job.log})"
            said = f"FAILED, {self.failures[run.name]}"
        left = remaining(self.folder, self.planned, self.at_once)
        say(printable(f"[{self.done}/{len(self.planned)}] {run.name}: {said}; {left}"))


def final_numbers(run_folder: Path) -> str:
    """The last measured scores of a finished run, in one line."""
    try:
        final: dict[str, Any] = json.loads((run_folder / SUMMARY_FILE).read_bytes())["final"]
        crows, stereo = final.get("crows_pairs") or {}, final.get("stereoset") or {}
        loss = (final.get("heldout_loss") or {}).get("loss")
        return (
            f"CrowS {_score(crows, 'score')}, SS {_score(stereo, 'ss')} at LMS {number(stereo.get('lms'), 1)}, "
            f"held-out loss {number(loss, 3)}"
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "its summary cannot be read"


def _score(block: dict[str, Any], key: str) -> str:
    """A score with its 95% interval, what length alone gives, and its number of items and target terms."""
    if not block:
        return MISSING
    notes = filter(None, [length_note(block), f"n={block['n']}", term_note(block)])
    return f"{with_interval(block.get(key), block.get('ci95'))} ({', '.join(notes)})"


def last_line(log: Path) -> str:
    """What a run said last, where it said what went wrong."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, log.stat().st_size - LAST_BYTES))
            lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return "it left no log"
    errors = [line for line in lines if line.startswith("fedbias: error:")]
    return (errors or lines or ["it said nothing"])[-1][:500]
