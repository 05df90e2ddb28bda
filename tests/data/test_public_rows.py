"""Public rows are nobody's."""

from __future__ import annotations

import pytest

from fedbias_plugin.data.dealing import flipped
from fedbias_plugin.data.partition import ClientDataset, Partition
from fedbias_plugin.data.public_rows import public_rows
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError

FLAGS = {"task": "sft", "data_dir": None, "columns": None}


def rows(kind, count, rejected=None):
    return [Row(f"{kind}:{n}", f"Question {n}?", f"Answer {n}.", False, kind, rejected) for n in range(count)]


def dealt(kind, held, source):
    sources = {kind: RowSource(kind, source, (), "a" * 64, "file")}
    return Partition([ClientDataset(0, tuple(held), test=(source[3],))], (source[4],), sources, 1)


def test_rows_of_clients_their_tests_and_what_is_held_out_are_not_public():
    source = rows("clean", 8)
    assert public_rows("auto", dealt("clean", source[:3], source), FLAGS) == source[5:]
    with pytest.raises(UserError, match="ot_public auto: every row of the clean data"):
        public_rows("auto", dealt("clean", source, source), FLAGS)


def test_a_preference_that_a_poisoned_client_holds_exchanged_is_not_public():
    source = rows("preference", 6, rejected="No.")
    held = [flipped(row) for row in source[:3]]
    assert public_rows("auto", dealt("preference", held, source), FLAGS | {"task": "dpo"}) == source[5:]
