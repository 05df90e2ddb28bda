"""Cuts runs of the built-in host off, as a process that dies would be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fedbias_plugin.federation.client import Client


class Cut(BaseException):
    """What cuts a run off; nothing catches it."""


@contextmanager
def cut_off_in(round_number: int = 3, client: int = 1) -> Iterator[None]:
    """A run within the block dies as ``client`` begins to train in that round; that it does is asserted."""
    fit = Client.fit

    def dies(self: Client, job: Any, features: Any) -> Any:
        if (job.round_idx, job.client) == (round_number - 1, client):
            raise Cut
        return fit(self, job, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "fit", dies)
        with pytest.raises(Cut):
            yield
