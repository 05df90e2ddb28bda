"""Public rows are nobody's."""

from __future__ import annotations

import pytest

from fedbias_plugin.data.dealing import flipped
from fedbias_plugin.data.partition import ClientDataset, Partition, manifest, partition_hash
from fedbias_plugin.data.public_rows import public_warnings, with_public_rows
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError

FLAGS = {"task": "sft", "data_dir": None, "columns": None, "trainable": "offsite", "ot_align": "every_round"}
FLAGS |= {"ot_public": "auto"}


def rows(kind, count, rejected=None):
    return [Row(f"{kind}:{n}", f"Question {n}?", f"Answer {n}.", False, kind, rejected) for n in range(count)]


def dealt(kind, held, source):
    sources = {kind: RowSource(kind, source, (), "a" * 64, "file")}
    return Partition([ClientDataset(0, tuple(held), test=(source[3],))], (source[4],), sources, 1)


def public(partition, **flags):
    return with_public_rows(partition, FLAGS | flags).sources["public"].rows


def test_rows_of_clients_their_tests_and_what_is_held_out_are_not_public():
    source = rows("clean", 8)
    partition = dealt("clean", source[:3], source)
    assert public(partition) == source[5:]
    assert public_warnings(with_public_rows(partition, FLAGS)) == []
    with pytest.raises(UserError, match="ot_public auto: every row of the clean data"):
        public(dealt("clean", source, source))


def test_a_preference_that_a_poisoned_client_holds_exchanged_is_not_public():
    source = rows("preference", 6, rejected="No.")
    held = [flipped(row) for row in source[:3]]
    assert public(dealt("preference", held, source), task="dpo") == source[5:]


def test_the_run_knows_its_public_rows_by_the_bytes_of_their_file(tmp_path):
    source = rows("clean", 8)
    partition, file = dealt("clean", source[:3], source), tmp_path / "public.jsonl"
    found = []
    for response in ("An answer of its own.", "Another one.", "Answer 0."):
        file.write_text(f'{{"instruction": "Question 0?", "response": "{response}"}}\n')
        found.append(with_public_rows(partition, FLAGS | {"ot_public": str(file)}))
    assert [one.sources["public"].rows[0].response for one in found[:2]] == ["An answer of its own.", "Another one."]
    assert manifest(found[0])["sources"]["public"]["files"] == ["public.jsonl"]
    assert len({partition_hash(one) for one in found}) == 3
    assert public_warnings(found[0]) == []
    assert (
        "of the 1 rows that the server trains on, 1 are a client's too and 0 are measured"
        in public_warnings(found[2])[0]
    )


@pytest.mark.parametrize("flags", [{"ot_align": "none"}, {"trainable": "lora"}, {"trainable": None}])
def test_a_run_without_alignment_has_none(flags):
    partition = dealt("clean", rows("clean", 8), rows("clean", 8))
    assert with_public_rows(partition, FLAGS | flags) is partition
