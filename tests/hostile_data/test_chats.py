"""Chats of any content, columns of any name, and any text in a chat template: rows, or a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fedbias_plugin.data.rows import Chat, Row
from fedbias_plugin.data.shapes import parse_columns
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.tasks.chat import ChatTemplate
from fedbias_plugin.tasks.encoding import IGNORED
from tests.chat_models import TEMPLATES, write_chat_tokenizer
from tests.hostile_data.generators import cases, csv_bytes, damaged, is_text, lines_bytes, outcome, texts, values
from tests.hostile_data.test_rows import check_source, is_plain

roles = st.sampled_from(("system", "user", "assistant", "human", "gpt", "Assistant", "tool", "", 3, None))
turn = st.fixed_dictionaries({"role": roles, "content": texts}) | st.fixed_dictionaries({"from": roles, "value": texts})
good = st.sampled_from(("user", "assistant")).flatmap(lambda role: st.just({"role": role, "content": f"by {role}"}))
chats = st.lists(good | turn, max_size=5) | st.lists(turn | values, max_size=3) | values


@cases(400)
@given(
    found=st.lists(chats, min_size=1, max_size=3), column=st.sampled_from(("messages", "Conversations")), data=st.data()
)
def test_a_file_of_any_chats_gives_rows_or_a_message(folder, tokenizer, found, column, data):
    path = folder / "chats.jsonl"
    path.write_bytes(data.draw(damaged(lines_bytes([{column: chat} for chat in found], True))))
    source = check_source(path, "clean", tokenizer)
    for row in source.rows if source else []:
        if isinstance(row.instruction, Chat):
            assert all(
                role in ("system", "user", "assistant") and is_text(text) for role, text in row.instruction.turns
            )


@cases(200)
@given(cell=texts, data=st.data())
def test_a_cell_that_is_no_chat_gives_a_message(folder, cell, data):
    path = folder / "chats.csv"
    path.write_bytes(data.draw(damaged(csv_bytes([{"messages": cell}], ("messages",)))))
    assert outcome(lambda: load_rows(str(path), "clean"), path) is None


@cases(200)
@given(st.lists(texts | st.sampled_from(("instruction=", "output=a", "=", "messages=x")), max_size=3).map(",".join))
def test_columns_of_any_text_are_pairs_or_a_message(text):
    names = outcome(lambda: parse_columns(text))
    assert names is None or all(ours and theirs for ours, theirs in names.items())


@pytest.fixture(scope="module", params=TEMPLATES)
def chat(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_chat_tokenizer(folder, request.param)
    return ChatTemplate(AutoTokenizer.from_pretrained(folder))


prompts = texts | st.lists(st.tuples(st.sampled_from(("user", "assistant")), texts), min_size=1, max_size=3).map(
    lambda turns: Chat.of([("system", "Be brief."), *turns, ("user", "And?")])
)


@cases(200)
@given(instruction=prompts, response=texts, length=st.integers(1, 64))
def test_a_chat_of_any_text_is_tokenized_or_refused_by_its_row(chat, instruction, response, length):
    row = Row("clean:7", instruction, response, False, "clean")
    feature = outcome(lambda: chat.encode(row, length))
    if feature is None:
        assert isinstance(instruction, Chat) or not (is_plain(instruction) and is_plain(response))
        return
    assert 0 < len(feature["input_ids"]) <= length
    assert len({len(part) for part in feature.values()}) == 1
    trained = [label for label in feature["labels"] if label != IGNORED]
    assert feature["labels"] == [IGNORED] * (len(feature["labels"]) - len(trained)) + trained
