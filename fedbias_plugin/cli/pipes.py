"""A reader that has seen enough, as in ``fedbias doctor | head -1``: the command ends, and says nothing of it."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO

READER_GONE = 128 + 13
"""Exit code of what SIGPIPE, signal 13, has ended."""


def flush_output() -> None:
    """Write out what is buffered, so that a reader that has gone is met here and not when Python ends.

    Raises:
        BrokenPipeError: it has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a parent may close them
            stream.flush()


def drop_unread_output() -> bool:
    """Turn every standard stream that nobody reads any more to the null device; whether there was one."""
    unread = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_unread(stream)]
    for stream in unread:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    return bool(unread)


def _is_unread(stream: TextIO) -> bool:
    """Whether ``stream`` is a pipe or socket without a reader."""
    try:
        watched = select.poll()
        watched.register(stream.fileno(), select.POLLOUT)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in watched.poll(0))
    except (AttributeError, OSError, ValueError):  # a system without poll, or a stream without a file
        return False
