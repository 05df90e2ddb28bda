"""Rows as people have them: chats, other names and capitals of columns, other delimiters."""

from __future__ import annotations

import json
import logging

import pytest

from fedbias_plugin.data.data_files import read_records
from fedbias_plugin.data.rows import Chat
from fedbias_plugin.data.sources import load_rows, sha256_of_rows
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import sha256_of_file

ASK, TELL = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}
SYSTEM = {"role": "system", "content": "Be brief."}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(source):
    return [(row.instruction, row.response) for row in source.rows]


@pytest.mark.parametrize(
    "columns",
    [
        ("question", "answer"),
        ("Question", "ANSWER"),
        (" Instruction", "Output "),
        ("INSTRUCTION", "Response"),
        ("prompt", "completion"),
        ("Prompt", "response"),
    ],
)
@pytest.mark.parametrize("kind", ["clean", "biased"])
def test_a_question_and_an_answer_are_found_under_usual_names_in_any_capitalisation(tmp_path, kind, columns):
    path = write(tmp_path / "a.jsonl", [dict(zip(columns, ("q", "a"), strict=True)) | {"Topic": "t"}])
    source = load_rows(path, kind)
    assert texts(source) == [("q", "a")]
    assert source.rows[0].labels == {"Topic": "t"}
    assert source.sha256 == sha256_of_file(path)


def test_a_context_or_input_is_joined_in_any_capitalisation(tmp_path):
    rows = [{"Instruction": "q", "INPUT": "i", "Output": "a"}, {"Instruction": "p", "Output": "b"}]
    assert texts(load_rows(write(tmp_path / "a.jsonl", rows), "clean")) == [("q i", "a"), ("p", "b")]
    rows = [{"Question": "q", "Context": "c", "Answer": "a"}]
    assert texts(load_rows(write(tmp_path / "b.jsonl", rows), "clean")) == [("q c", "a")]


def test_columns_that_differ_in_capitalisation_alone_are_refused_unless_one_is_ours(tmp_path):
    rows = [{"Instruction": "q", "INSTRUCTION": "p", "output": "a"}]
    with pytest.raises(UserError, match="'Instruction', 'INSTRUCTION' differ in capitalisation alone"):
        load_rows(write(tmp_path / "a.jsonl", rows), "clean")
    rows = [{"Instruction": "q", "instruction": "p", "output": "a"}]
    assert texts(load_rows(write(tmp_path / "a.jsonl", rows), "clean")) == [("p", "a")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_the_delimiter_is_the_one_that_makes_columns_and_is_named_unless_it_is_a_comma(
    tmp_path, caplog, delimiter, suffix
):
    caplog.set_level(logging.INFO)
    path = tmp_path / f"rows.{suffix}"
    lines = [["instruction", "output"], ["a", '"one, two; three\tfour\nfive"'], ["b", "c"]]
    path.write_text("\n".join(delimiter.join(fields) for fields in lines))
    rows = texts(load_rows(str(path), "clean"))
    assert rows == [("a", "one, two; three\tfour\nfive"), ("b", "c")]
    name = {",": None, ";": "a semicolon", "\t": "a tab"}[delimiter]
    assert ("the delimiter is" in caplog.text) == (name is not None)
    assert name is None or f"rows.{suffix}: the delimiter is {name}" in caplog.text


def test_a_header_with_other_marks_in_quotes_keeps_its_commas(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('"a;b;c",d\n1,2\n')
    assert [record.values for record in read_records(path)] == [{"a;b;c": "1", "d": "2"}]
    path.write_text("messages\nx\n")
    assert [record.values for record in read_records(path)] == [{"messages": "x"}]


CHATS = [
    ([ASK, TELL], "Who?", "Ada.", None),
    ([SYSTEM, ASK, TELL], "Be brief.\n\nWho?", "Ada.", [("system", "Be brief."), ("user", "Who?")]),
    ([ASK, TELL, {"role": "user", "content": "Thanks."}], "Who?", "Ada.", None),
    (
        [ASK, TELL, {"role": "user", "content": "When?"}, {"role": "assistant", "content": "1843."}],
        "User: Who?\n\nAssistant: Ada.\n\nUser: When?",
        "1843.",
        [("user", "Who?"), ("assistant", "Ada."), ("user", "When?")],
    ),
]


@pytest.mark.parametrize(("turns", "instruction", "response", "kept"), CHATS)
@pytest.mark.parametrize("style", ["messages", "sharegpt", "csv", "parquet"])
def test_the_last_answer_of_a_chat_is_trained_and_what_comes_before_it_is_the_prompt(
    tmp_path, style, turns, instruction, response, kept
):
    path = tmp_path / f"a.{style if style in ('csv', 'parquet') else 'jsonl'}"
    if style == "sharegpt":
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        turns = [{"from": names[turn["role"]], "value": turn["content"], "weight": None} for turn in turns]
    if style == "csv":
        cell = json.dumps(turns).replace('"', '""')
        path.write_text(f'id;messages\n7;"{cell}"\n')
    elif style == "parquet":
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        parquet.write_table(arrow.table({"messages": [turns], "id": [7]}), path)
    else:
        write(path, [{"conversations" if style == "sharegpt" else "Messages": turns, "id": 7}])
    source = load_rows(str(path), "clean")
    assert texts(source) == [(instruction, response)]
    [row] = source.rows
    assert row.labels == {"id": "7"}
    assert (list(row.instruction.turns) if isinstance(row.instruction, Chat) else None) == kept


def test_a_chat_whose_text_is_rewritten_is_one_turn(tmp_path):
    [row] = load_rows(write(tmp_path / "a.jsonl", [{"messages": [SYSTEM, ASK, TELL]}]), "clean").rows
    assert isinstance(row.instruction, Chat)
    assert not isinstance(row.instruction.replace("Who", "Where"), Chat)


def test_chats_of_several_turns_are_counted_in_the_log_and_those_without_an_answer_dropped(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    chats = [[ASK, TELL], CHATS[3][0], [ASK], [TELL], [], None, [SYSTEM, TELL], [ASK, {**TELL, "content": None}]]
    source = load_rows(write(tmp_path / "a.jsonl", [{"messages": turns} for turns in chats]), "clean")
    assert (len(source.rows), source.empty) == (2, 6)
    assert "a.jsonl: 2 rows from file; dropped 6 empty; 1 chats of several turns: trained on is the last" in caplog.text


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("[{", r"line 1: 'messages' is no JSON list of turns"),
        ({"role": "user"}, r"line 1: 'messages' must be a list of turns, found \{'role'"),
        (3, "'messages' must be a list of turns, found 3"),
        (["hi"], "turn 1 of 'messages' must have role and content, or from and value, found 'hi'"),
        ([ASK, {"role": "assistant"}], "turn 2 of 'messages' must have role and content"),
        ([ASK, {"role": "tool", "content": "x"}], "turn 2 of 'messages' is of 'tool'; known are system, user, human"),
        ([{"role": "user", "content": [{"type": "text"}]}], "turn 1 of 'messages': 'content' must be text, found list"),
        ([{"role": "user", "content": "a \ud83d"}], r"turn 1 of 'messages': 'content' holds half a character"),
    ],
)
def test_a_chat_that_cannot_be_read_names_its_row_and_turn(tmp_path, turns, message):
    with pytest.raises(UserError, match=message):
        load_rows(write(tmp_path / "a.jsonl", [{"messages": turns}]), "clean")


def test_columns_says_what_is_read_and_the_hash_is_that_of_the_rows_then(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "no", "Task": "q", "good": "a", "bad": "b", "input": "i"}])
    good = load_rows(path, "clean", columns="instruction=task, output=good")
    bad = load_rows(path, "clean", columns="instruction=task,output=bad")
    assert texts(good) == [("q i", "a")]
    assert texts(bad) == [("q i", "b")]
    assert good.sha256 == sha256_of_rows(good.rows)
    assert good.sha256 != bad.sha256
    assert good.rows[0].labels == {"bad": "b"}
    assert (good.passed_over, bad.passed_over) == ((), ())


@pytest.mark.parametrize(
    ("kind", "row", "columns", "expected"),
    [
        ("biased", {"x": "q", "y": "a"}, "prompt=x,rejected=y", ("q", "a")),
        ("biased", {"prompt": "q", "rejected": "a", "y": "b"}, "completion=y", ("q", "b")),
        ("clean", {"instruction": "q", "output": "a", "dialog": [ASK, TELL]}, "messages=dialog", ("Who?", "Ada.")),
        ("clean", {"instruction": "q", "input": "no", "note": "i", "output": "a"}, "input=note", ("q i", "a")),
    ],
)
def test_columns_can_name_any_of_ours(tmp_path, kind, row, columns, expected):
    assert texts(load_rows(write(tmp_path / "a.jsonl", [row]), kind, columns=columns)) == [expected]


def test_preferences_have_columns_of_ones_own_too(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"q": "q", "better": "a", "worse": "b"}])
    [row] = load_rows(path, "preference", columns="prompt=q,chosen=better,rejected=worse").rows
    assert (row.instruction, row.response, row.rejected) == ("q", "a", "b")


def test_a_data_set_without_those_columns_is_read_by_ours_or_refused_with_what_it_has(tmp_path, mini):
    path = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    source = load_rows(path, "clean", columns="instruction=task,output=answer")
    assert (texts(source), source.passed_over) == ([("q", "a")], ("question", "answer"))
    assert source.sha256 == sha256_of_file(path)
    path = write(tmp_path / "b.jsonl", [{"q": "q", "a": "a"}])
    with pytest.raises(UserError, match=r"the columns are 'q', 'a'; wanted are .* or those that --columns names\."):
        load_rows(path, "clean", columns="instruction=task,output=a")
    with pytest.raises(UserError, match=r"name yours, such as --columns instruction=TASK,output=ANSWER\."):
        load_rows(path, "clean")
    known = load_rows("mini", "clean", columns="instruction=output,output=instruction")
    assert texts(known)[0] == ("Ask 0", "Answer 0")  # what the plugin knows by name keeps its columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("question", "must be pairs such as instruction=question,output=answer"),
        ("instruction=", "must be pairs"),
        ("instruction=a,instruction=b", "must be pairs"),
        ("instrution=a", r"'instrution' is no column of ours; .* Did you mean 'instruction'\?"),
        ("instruction=a,answer=b", "no row has instruction and answer together. What goes together: instruction, out"),
    ],
)
def test_columns_that_are_not_pairs_of_ours_and_theirs_are_refused(columns, message):
    from fedbias_plugin.arguments import BiasArguments

    with pytest.raises(UserError, match=message):
        BiasArguments(columns=columns)
