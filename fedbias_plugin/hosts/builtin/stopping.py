"""SIGTERM, SIGHUP (a terminal that is closed) and Ctrl-C: the step at hand is finished, then the run stops."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from fedbias_plugin.errors import Stopped
from fedbias_plugin.progress import Bar, Progress

logger = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
SAME_WISH = 1.0
"""Seconds."""


class StopSignals:
    """Takes the first of :data:`SIGNALS` down as a wish, granted at the next :meth:`check`; a later one stops at once.

    What comes within a second is the same wish, as from a wrapper that hands on what the terminal sends too. A context
    manager: outside of it the signals do what they did before. Ignored signals stay ignored.

    Args:
        effect: what the user is told of the first one.
    """

    def __init__(self, effect: str = "the run stops after this step; once more stops it at once") -> None:
        self._effect = effect
        self._wish: int | None = None
        self._since = 0.0
        self._held = False
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal came and nothing is held."""
        if self._wish is not None and not self._held:
            raise Stopped(self._wish)

    @contextmanager
    def held(self, held: bool = True) -> Iterator[None]:
        """Let :meth:`check` pass within the block, if ``held``."""
        self._held = held
        try:
            yield
        finally:
            self._held = False

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            taken = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._take) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._wish is None:
            self._wish, self._since = number, time.monotonic()
            name = signal.Signals(number).name
            logger.warning("%s: %s.", name, self._effect)
        elif time.monotonic() - self._since > SAME_WISH:
            raise Stopped(number, at_once=True)


class StoppableProgress(Progress):
    """The bars of ``inner``; a bar that advances asks ``stop`` whether to go on.

    Args:
        inner: draws.
        stop: asked at every advance.
    """

    def __init__(self, inner: Progress, stop: StopSignals) -> None:
        self._inner, self._stop = inner, stop

    def task(self, description: str, total: float | None) -> Bar:
        return _StoppableBar(self._inner.task(description, total), self._stop)

    def close(self) -> None:
        self._inner.close()


class _StoppableBar(Bar):
    def __init__(self, inner: Bar, stop: StopSignals) -> None:
        self._inner, self._stop = inner, stop

    def __call__(self, advance: float = 1) -> None:
        self._inner(advance)
        self._stop.check()

    def close(self) -> None:
        self._inner.close()
