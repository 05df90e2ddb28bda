"""Progress bars that cost nothing and say nothing where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedbias_plugin.terminal import terminal_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

SPARE = 4
"""Columns to the right of a bar, for the ``^C`` of a terminal, which would begin a line that nobody has counted."""


class Bar:
    """One bar: call it to advance it, close it (or leave its ``with`` block) to take it off the screen.

    This class is also the bar of a log file: it draws nothing.
    """

    def __call__(self, advance: float = 1) -> None:
        """Advance by ``advance`` units."""

    def close(self) -> None:
        """Take the bar away; safe to call twice."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Progress:
    """Hands out bars. This one, for logs and pipes, draws none; :func:`build_progress` picks the right one."""

    def rounds(self, total: int) -> Bar:
        """The bar of the whole run."""
        return self.task("rounds", total)

    def task(self, description: str, total: float | None) -> Bar:
        """A bar of ``total`` units; None draws a bar without an end."""
        return Bar()

    def close(self) -> None:
        """Take every bar off the screen; safe to call twice."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _TerminalBar(Bar):
    def __init__(self, progress: RichProgress, task_id: TaskID) -> None:
        self._progress, self._task_id = progress, task_id

    def __call__(self, advance: float = 1) -> None:
        if self._is_open():
            self._progress.advance(self._task_id, advance)

    def close(self) -> None:
        if self._is_open():
            self._progress.remove_task(self._task_id)
            # What is printed next counts the lines of the bars that it must go above while another thread draws them.
            self._progress.refresh()
        if not self._progress.task_ids:
            self._progress.stop()

    def _is_open(self) -> bool:
        return self._task_id in self._progress.task_ids


class TerminalProgress(Progress):
    """Bars at the foot of a terminal; what is printed meanwhile appears above them. Shown while a bar is open.

    Args:
        console: the ``rich`` console to draw on.
    """

    def __init__(self, console: Console) -> None:
        from rich.constrain import Constrain
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        class Bars(RichProgress):
            def get_renderables(self) -> Iterator[Constrain]:
                for part in super().get_renderables():
                    yield Constrain(part, max(1, console.width - SPARE))

        self._progress = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def task(self, description: str, total: float | None) -> Bar:
        self._progress.start()
        return _TerminalBar(self._progress, self._progress.add_task(description, total=total))

    def close(self) -> None:
        for task_id in list(self._progress.task_ids):
            self._progress.remove_task(task_id)
        self._progress.stop()


def build_progress(console: Console | None = None) -> Progress:
    """Bars on ``console``, or on the standard output if it is a terminal with ``rich`` installed; else none."""
    target = console or terminal_console()
    return TerminalProgress(target) if target is not None else Progress()
