import hashlib
import json
import subprocess
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.data.data_files import Record, forget_pickled_types, read_records, text_value
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import git_blob_of_file, sha256_of_files

ROWS = [{"instruction": "Say é", "output": "é, \u2028 and 🙂"}, {"instruction": "b", "output": "two\nlines"}]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def encoded(suffix):
    if suffix == "csv":
        return 'instruction,output\n"Say é","é, \u2028 and 🙂"\nb,"two\nlines"\n'
    if suffix == "json":
        return json.dumps(ROWS, indent=2, ensure_ascii=False)
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "csv"])
def test_the_same_rows_come_from_every_text_format_with_or_without_a_byte_order_mark(tmp_path, suffix, mark):
    path = write(tmp_path / f"rows.{suffix}", mark + encoded(suffix))
    assert [record.values for record in read_records(path)] == ROWS


def test_parquet_gives_the_same_rows(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert [record.values for record in read_records(tmp_path / "rows.parquet")] == ROWS


def test_an_old_pyarrow_forgets_the_column_type_that_it_would_unpickle():
    forgotten = []
    for version in ("13.0.0", "14.0.0", "14.0.1", "26.0.1"):
        arrow = SimpleNamespace(__version__=version)
        arrow.unregister_extension_type = lambda name, version=version: forgotten.append((version, name))
        forget_pickled_types(arrow)
    assert forgotten == [(version, "arrow.py_extension_type") for version in ("13.0.0", "14.0.0")]


def test_a_json_file_with_an_object_a_line_is_read_line_by_line(tmp_path):
    assert [record.values for record in read_records(write(tmp_path / "rows.json", encoded("jsonl")))] == ROWS


def test_a_row_is_named_by_the_line_it_begins_on(tmp_path):
    lines = write(tmp_path / "rows.jsonl", '{"a": "1"}\r\n\r\n{"a": "2"}\r\n')
    assert [record.where for record in read_records(lines)] == [f"{lines}, line 1", f"{lines}, line 3"]
    table = write(tmp_path / "rows.csv", 'a,b\n"1\n1",2\n3,4\n')
    assert [record.where for record in read_records(table)] == [f"{table}, line 2", f"{table}, line 4"]
    array = write(tmp_path / "rows.json", '[{"a": "1"},\n\n{"a": "2"}]')
    assert [record.where for record in read_records(array)] == [f"{array}, row 1", f"{array}, row 2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", " \n\n", "is empty"),
        ("a.json", "[]", "holds no rows"),
        ("a.csv", "instruction,output\n", "holds no rows"),
        ("a.txt", "x", r"suffix, which must be one of \.json, \.jsonl"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n', r"line 2: byte 0xff at offset 18 is not UTF-8"),
        ("a.json", b'[{"a": "x"},\n\n{"a": "\xe9t"}]', r"line 3: byte 0xe9 at offset 21 is not UTF-8"),
        ("a.csv", "a\nü\n".encode("latin-1"), r"line 2: byte 0xfc"),
        ("a.jsonl", '{"a": "x"}\n{"a": "y"\n', r"line 2, column 10: malformed JSON: Expecting ',' delimiter"),
        ("a.json", '[{"a": "x"},\n {"a" "y"}]', r"line 2, column 7: malformed JSON: Expecting ':' delimiter"),
        ("a.json", '{"a": "x"}\n{"a": oops}\n', r"line 2, column 7: malformed JSON"),
        ("a.json", '{"a": "x"}', "must hold a list of objects, found one object"),
        ("a.json", "3", "must hold a list of objects, found a number"),
        ("a.json", '[{"a": "x"}, ["y"]]', "row 2: a row must be an object .* found a list"),
        ("a.jsonl", '{"a": "x"}\n"y"\n', "line 2: a row must be an object .* found a string"),
        ("a.jsonl", '{"a": "x"}\nnull\n', "line 2: a row must be an object .* found null"),
        (
            "a.jsonl",
            '{"a": "x"}\n{"a": "ok \\ud83d"}\n',
            r"line 2: 'a' holds half a character .*U\+D83D\) at position 3",
        ),
        ("a.jsonl", '{"a": ' + "1" * 5000 + "}", "line 1: malformed JSON: Exceeds the limit"),
        ("a.json", '[{"a": ' + "1" * 5000 + "}]", "malformed JSON: Exceeds the limit"),
        ("a.json", "[" * 200_000, "nested too deeply|malformed"),
        ("a.csv", "a,b\n1,2\n3\n", r"line 3: 1 fields, but the header has 2"),
        ("a.csv", "a,b,a\n1,2,3\n", r"line 1: the column 'a' occurs twice"),
        ("a.csv", 'a,b\n1,"2\n', r"line 2: malformed CSV"),
        ("a.parquet", "PAR1 not really", "not a readable parquet file"),
        ("a.parquet", "", "is empty"),
    ],
)
def test_a_broken_file_is_named_with_the_place_where_it_breaks(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as error:
        read_records(path)
    assert str(path) in str(error.value)


def test_an_absent_file_and_a_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_records(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_records(tmp_path / "folder.json")


def test_a_value_that_is_not_text_names_its_row():
    record = Record({"a": 3, "b": None}, "rows.json, row 7")
    with pytest.raises(UserError, match=r"rows.json, row 7: 'a' must be text, found int \(3\)"):
        text_value(record, "a")
    with pytest.raises(UserError, match=r"row 7: the column 'c' is missing; found 'a', 'b'"):
        text_value(record, "c")
    assert text_value(record, "b") == ""
    assert text_value(record, "c", optional=True) == ""


@given(st.binary(max_size=60), st.sampled_from(["json", "jsonl", "csv", "parquet"]))
def test_no_bytes_whatsoever_raise_anything_but_a_user_error(tmp_path_factory, content, suffix):
    path = write(tmp_path_factory.mktemp("fuzz") / f"x.{suffix}", content)
    try:
        records = read_records(path)
    except UserError:
        return
    assert all(isinstance(record.values, dict) for record in records)


def test_one_file_has_its_own_hash_and_several_the_hash_of_the_listing(tmp_path):
    first, second = write(tmp_path / "a", "one"), write(tmp_path / "b", "two")
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    assert sha256_of_files([first]) == one
    assert sha256_of_files([first, second]) == hashlib.sha256(f"{one}  a\n{two}  b\n".encode()).hexdigest()


def test_the_blob_id_is_the_one_git_gives(tmp_path):
    path = write(tmp_path / "a", "hello\n")
    assert git_blob_of_file(path) == "ce013625030ba8dba906f756967f9e9ca394464a"
    try:
        answer = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed")
    assert git_blob_of_file(path) == answer.stdout.strip()
