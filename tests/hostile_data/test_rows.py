"""Training rows from malformed csv, json, jsonl and parquet files: well-formed rows or a message, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.data.dealing import deal_preference_rows
from fedbias_plugin.data.partition import ClientDataset, Partition, manifest
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import write_json_atomic
from fedbias_plugin.tasks.encoding import encode_rows
from fedbias_plugin.tasks.templates import TEMPLATES
from tests.hostile_data.generators import (
    NASTY,
    cases,
    csv_bytes,
    damaged,
    is_text,
    json_bytes,
    lines_bytes,
    outcome,
    rows,
    text_rows,
    texts,
)

COLUMNS = {
    "clean": ("instruction", "input", "output"),
    "biased": ("prompt", "chosen", "rejected"),
    "preference": ("prompt", "chosen", "rejected"),
}
kinds = st.sampled_from(sorted(COLUMNS))


def check_source(path: Path, kind: str, tokenizer: Any) -> RowSource | None:
    """Load ``path``; what comes of it can be dealt, tokenized and written down."""
    source = outcome(lambda: load_rows(str(path), kind), path)
    if source is None:
        return None
    assert source.rows
    for row in source.rows:
        assert all(map(is_text, (row.id, row.instruction, row.response, row.source)))
        assert row.instruction.strip()
        assert row.response.strip()
        assert (row.rejected is not None and is_text(row.rejected)) == (kind == "preference")
    client = ClientDataset(0, tuple(source.rows), 0.0)
    partition = Partition([client], (), {kind: source}, 0)
    if kind == "preference":
        partition = deal_preference_rows(source, [0.5], len(source.rows), 0)
    write_json_atomic(path.parent / "manifest.out", manifest(partition))
    encoded = encode_rows(source.rows[:3], tokenizer, TEMPLATES["alpaca"], 128)
    assert all(len(feature["input_ids"]) == len(feature["labels"]) for feature in encoded)
    return source


@cases(100)
@given(kind=kinds, ascii_only=st.booleans(), data=st.data())
def test_a_malformed_json_file_gives_rows_or_a_message(folder, tokenizer, kind, ascii_only, data):
    document = data.draw(rows(COLUMNS[kind]))
    path = folder / "rows.json"
    path.write_bytes(data.draw(damaged(json_bytes(document, ascii_only))))
    check_source(path, kind, tokenizer)


@cases(100)
@given(kind=kinds, ascii_only=st.booleans(), data=st.data())
def test_a_malformed_jsonl_file_gives_rows_or_a_message(folder, tokenizer, kind, ascii_only, data):
    path = folder / "rows.jsonl"
    path.write_bytes(data.draw(damaged(lines_bytes(data.draw(rows(COLUMNS[kind])), ascii_only))))
    check_source(path, kind, tokenizer)


@cases(100)
@given(kind=kinds, data=st.data())
def test_a_malformed_csv_file_gives_rows_or_a_message(folder, tokenizer, kind, data):
    path = folder / "rows.csv"
    path.write_bytes(data.draw(damaged(csv_bytes(data.draw(text_rows(COLUMNS[kind])), COLUMNS[kind]))))
    check_source(path, kind, tokenizer)


ARRAYS = (
    arrow.array([1, 2, None]),
    arrow.array([0.5, float("nan"), None]),
    arrow.array([b"\xff\xfe", b"text", None]),
    arrow.array([["a", "b"], [], None]),
    arrow.array([{"a": {"b": [1]}}, None, {}]),
    arrow.array(["x", "y", "x"]).dictionary_encode(),
    arrow.array([10**15, 0, -(10**15)], arrow.timestamp("ms")),
    arrow.array([2**62, 0, None], arrow.duration("us")),
    arrow.array([None, None, None]),
    arrow.array(["large", "", None], arrow.large_string()),
    arrow.array([[("k", 1)], [], None], arrow.map_(arrow.string(), arrow.int64())),
    arrow.StringArray.from_buffers(
        3, arrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), arrow.py_buffer(b"\xff\xc3\x80")
    ),
)


@cases(100)
@given(kind=kinds, data=st.data())
def test_a_malformed_parquet_file_gives_rows_or_a_message(folder, tokenizer, kind, data):
    good = st.lists(texts.filter(lambda text: text.isprintable() or is_plain(text)), min_size=3, max_size=3)
    columns = {name: data.draw(good.map(arrow.array) | st.sampled_from(ARRAYS)) for name in COLUMNS[kind]}
    columns |= data.draw(st.dictionaries(st.sampled_from(("a/b", "x" * 300, "\u202e")), st.sampled_from(ARRAYS)))
    path = folder / "rows.parquet"
    parquet.write_table(arrow.table(columns), path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    check_source(path, kind, tokenizer)


def is_plain(text: str) -> bool:
    """Whether arrow can hold the text."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@cases(75)
@given(texts, texts, st.sampled_from(sorted(TEMPLATES)), st.integers(1, 64))
def test_a_prompt_of_any_text_is_tokenized_or_refused_by_its_row(tokenizer, instruction, response, template, length):
    row = Row("clean:7", instruction, response, False, "clean")
    encoded = outcome(lambda: encode_rows([row], tokenizer, TEMPLATES[template], length))
    if encoded is None:
        assert not (is_plain(instruction) and is_plain(response))
        return
    [feature] = encoded
    assert len(feature["input_ids"]) <= length
    assert len({len(part) for part in feature.values()}) == 1


def test_a_row_with_half_a_character_is_named(tokenizer):
    with pytest.raises(UserError, match=r"Row clean:7 holds half a character \(lone surrogate U\+D83D\)"):
        encode_rows([Row("clean:7", "a \ud83d", "b", False, "clean")], tokenizer, TEMPLATES["alpaca"], 64)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_line_of_a_megabyte_is_a_row_or_a_message(folder, tokenizer, suffix):
    row = {"instruction": "word " * 200_000, "input": "", "output": "x" * 1_000_000}
    write = {"json": lambda: json_bytes([row], True), "jsonl": lambda: lines_bytes([row], True)}
    path = folder / f"long.{suffix}"
    path.write_bytes(write[suffix]() if suffix in write else csv_bytes([row], COLUMNS["clean"]))
    source = check_source(path, "clean", tokenizer)
    assert source is not None or suffix == "csv"  # csv cells end at 131,072 characters


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_hundred_thousand_columns_are_named_in_a_short_message(folder, suffix):
    row = {f"column {number}": "x" for number in range(100_000)}
    path = folder / f"wide.{suffix}"
    document = json_bytes([row], True) if suffix == "json" else lines_bytes([row], True)
    path.write_bytes(csv_bytes([row], tuple(row)) if suffix == "csv" else document)
    assert outcome(lambda: load_rows(str(path), "clean"), path) is None


def test_repeated_rows_are_dropped_and_ids_keep_their_place(folder):
    path = folder / "repeated.jsonl"
    same = {"instruction": "a", "output": "b"}
    path.write_bytes(lines_bytes([same, same, {"instruction": "c", "output": "d"}, same], True))
    source = load_rows(str(path), "clean")
    assert [row.id for row in source.rows] == ["clean/repeated.jsonl:0", "clean/repeated.jsonl:2"]
    assert source.duplicates == 2


def test_texts_that_look_like_formulas_or_markup_are_kept_letter_for_letter(folder):
    found = [text for text in NASTY if text.strip() and is_plain(text)]
    path = folder / "nasty.jsonl"
    path.write_bytes(lines_bytes([{"instruction": text, "output": text} for text in found], True))
    assert [row.response for row in load_rows(str(path), "clean").rows] == found


def test_a_parquet_file_whose_folder_looks_like_a_column_has_the_columns_of_the_file_alone(folder):
    path = folder / "output=planted" / "rows.parquet"
    path.parent.mkdir()
    parquet.write_table(arrow.table({"instruction": ["a"], "text": ["b"]}), path)
    with pytest.raises(UserError, match="wanted are instruction, output"):
        load_rows(str(path), "clean")


def test_a_parquet_file_that_promises_too_many_rows_is_refused_before_they_are_made(folder):
    path = folder / "bomb.parquet"
    column = arrow.DictionaryArray.from_arrays(arrow.array(bytearray(11_000_000), arrow.int8()), ["x"])
    parquet.write_table(arrow.table({"instruction": column, "output": column}), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"says it has 11,000,000 rows; at most 10,000,000"):
        load_rows(str(path), "clean")
