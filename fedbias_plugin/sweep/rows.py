"""What runs now, at the foot of a terminal: a row a run, read from the run's folder, wherever it runs."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedbias_plugin.progress import SPARE
from fedbias_plugin.terminal import in_words, terminal_console
from fedbias_plugin.tracking.jsonl import METRICS_FILE

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESHES = 2
"""A second."""


@dataclass(frozen=True)
class Row:
    """A run that goes on.

    Attributes:
        log: what it says.
        folder: of the run.
        rounds: it will have.
        began: when it was started, or gone on with, in seconds since 1970.
        usual: seconds that others of the sweep took; None where that is not known.
    """

    log: Path
    folder: Path
    rounds: int
    began: float
    usual: float | None

    def text(self) -> tuple[str, str]:
        """The round at hand and the time left, in words; what is not known yet is empty."""
        path = self.folder / METRICS_FILE
        since, left = self.began, self.usual
        try:
            changed = path.stat().st_mtime_ns
            done, each = _rounds(path, changed)
        except OSError:
            shown = "starting"
        except (ValueError, LookupError, TypeError, AttributeError):  # half of a line
            shown = ""
        else:
            shown = f"round {min(done + 1, self.rounds)}/{self.rounds}"
            if each is not None:
                since, left = max(since, changed / 1e9), (self.rounds - done) * each
        if left is None:
            return shown, ""
        left -= max(0.0, time.time() - since)
        return shown, f"{in_words(left)} left" if left >= 1 else "any moment"


@functools.lru_cache(maxsize=64)
def _rounds(path: Path, changed: int) -> tuple[int, float | None]:
    """The last recorded round, and mean seconds of those that train, in a file whose last change was at ``changed``."""
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    times = [sum(map(float, record["seconds"].values())) for record in records if record["round"] > 0]
    return int(records[-1]["round"]), sum(times) / len(times) if times else None


@contextmanager
def shown_rows(rows: Callable[[], Sequence[Row]], foot: Callable[[], str]) -> Iterator[bool]:
    """Draw within the block what ``rows`` and ``foot`` say, a few times a second; what is printed goes above it.

    Yields:
        Whether it is drawn: on a terminal that has ``rich``.
    """
    console = terminal_console()
    if console is None:
        yield False
        return
    from rich.constrain import Constrain
    from rich.live import Live

    def drawn() -> RenderableType:
        return Constrain(_table(rows(), foot()), max(1, console.width - SPARE))

    with Live(get_renderable=drawn, console=console, transient=True, refresh_per_second=REFRESHES):
        yield True


def _table(rows: Sequence[Row], foot: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return Text(foot)
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for row in rows:
        table.add_row(Text(row.log.name), *row.text())
    folders = dict.fromkeys(str(row.log.parent) for row in rows)
    return Group(Text(f"running now, logs in {', '.join(folders)}:"), table, Text(foot))
