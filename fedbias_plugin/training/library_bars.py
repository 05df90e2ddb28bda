"""Progress bars of other libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_library_bars() -> Iterator[None]:
    """Transformers draws bars of its own while it loads and saves, also into log files; not here.

    Downloads keep theirs on a terminal: they can take long.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    shows_downloads = sys.stderr.isatty() and not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.enable_progress_bar()
