"""Carries out a plan: shows it, starts what is not done, and says at the end what failed."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import printable
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.metrics.formatting import MISSING
from fedbias_plugin.registry import in_order, names
from fedbias_plugin.sweep.base import Job, Launcher
from fedbias_plugin.sweep.folder import DONE, TO_RESUME, SweepFolder
from fedbias_plugin.sweep.plan import PlannedRun
from fedbias_plugin.sweep.rows import Row, shown_rows
from fedbias_plugin.terminal import in_words, say
from fedbias_plugin.tracking.jsonl import SUMMARY_FILE

LAST_BYTES = 20_000


@dataclass
class Execution:
    """The course of one sweep.

    Args:
        folder: where its runs lie.
        planned: all its runs.
        launcher: what starts them.

    Raises:
        UserError: as :attr:`Launcher.at_once`.
    """

    folder: SweepFolder
    planned: Sequence[PlannedRun]
    launcher: Launcher
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at_once = self.launcher.at_once
        self._by_name = {run.name: run for run in self.planned}
        self._running: dict[str, float] = {}
        self._is_drawn, self._foot = False, ""
        self._usual: float | None = None

    def plan_lines(self) -> list[str]:
        """The runs with their states, and how long the rest takes."""
        states = [self.folder.state(run) for run in self.planned]
        width = max((len(run.name) for run in self.planned), default=0)
        lines = []
        for run, state in zip(self.planned, states, strict=True):
            shown = f"{state} after round {self.folder.rounds(run)}" if state == TO_RESUME else state
            lines.append(f"  {run.name:<{width}}  {shown:<24}  {', '.join(run.experiments)}")
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return [*lines, f"{len(self.planned)} runs: {counts}; {self._remaining()}"]

    @property
    def done(self) -> list[PlannedRun]:
        """Runs that are done."""
        return [run for run in self.planned if self.folder.state(run) == DONE]

    def run(self) -> None:
        """Start every run that is not done; :attr:`failures` names those that failed, and why."""
        jobs = []
        for run in self.planned:
            if self.folder.state(run) != DONE:
                paths = (str(path.absolute()) for path in (self.folder.config(run), self.folder.run(run)))
                command = (sys.executable, "-m", "fedbias_plugin.sweep.one_run", *paths)
                environment = {
                    "FEDBIAS_EXPERIMENTS": ",".join(run.experiments),
                    "FEDBIAS_ORIGINAL_SCORES": str(self.folder.shared.absolute()),
                }
                jobs.append(Job(run.name, command, environment, self.folder.log(run).absolute()))
        if jobs:
            self._foot = self._remaining()
            with shown_rows(self._rows, lambda: self._foot) as self._is_drawn:
                self.launcher.run(jobs, self.folder.path, self._running_now, self._ended)

    def _rows(self) -> list[Row]:
        rows = []
        for name, began in self._running.items():
            run = self._by_name[name]
            rounds = run.settings["num_rounds"]
            rows.append(Row(self.folder.log(run), self.folder.run(run), rounds, began, self._usual))
        return rows

    def _running_now(self, jobs: Sequence[Job]) -> None:
        before = self._running
        self._running = {job.name: before.get(job.name, time.time()) for job in jobs}
        if not self._is_drawn:
            for name in [name for name in self._running if name not in before]:
                say(printable(f"{name}: started, log: {self.folder.log(self._by_name[name])}"))

    def _ended(self, job: Job, outcome: int | str) -> None:
        run = self._by_name[job.name]
        if outcome == 0 and self.folder.state(run) == DONE:
            said = f"finished; {final_numbers(self.folder.run(run))}"
        else:
            why = outcome if isinstance(outcome, str) else f"exit code {outcome}"
            self.failures[run.name] = f"{why}: {last_line(job.log)} (all of it: {job.log})"
            said = f"FAILED, {self.failures[run.name]}"
        counted, remaining = f"[{len(self.done)}/{len(self.planned)}]", self._remaining()
        self._foot = f"{counted} done; {remaining}"
        say(printable(f"{counted} {run.name}: {said}; {remaining}"))

    def _remaining(self) -> str:
        """How long the rest takes, in words, by the mean of the runs that have ended."""
        done = self.done
        left = len(self.planned) - len(done)
        if left == 0:
            return "nothing is left to do"
        times = []
        for run in done:
            try:
                times.append(float(json.loads((self.folder.run(run) / SUMMARY_FILE).read_bytes())["seconds"]))
            except (OSError, ValueError, LookupError, TypeError):
                continue
        times = [seconds for seconds in times if math.isfinite(seconds)]
        if not times:
            return "how long it takes is known after the first run"
        each = self._usual = sum(times) / len(times)
        return f"about {in_words(each * left / self.at_once)} left ({in_words(each)} a run, {self.at_once} at a time)"


def final_numbers(run_folder: Path) -> str:
    """The last measured scores of a finished run, in one line."""
    try:
        final: dict[str, Any] = json.loads((run_folder / SUMMARY_FILE).read_bytes())["final"]
        found = [name for name, block in final.items() if block and (name in names("metric") or ":" in name)]
        blocks = {name: final[name] for name in in_order("metric", found)}
        return ", ".join(metric_class(name).line(block) for name, block in blocks.items()) or MISSING
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "its summary cannot be read"


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
