"""``--template chat``: the tokenizer's own template, and exactly the response and the end of its turn trained."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoTokenizer

from fedbias_plugin.data.rows import Chat
from fedbias_plugin.errors import UserError
from fedbias_plugin.tasks.chat import ChatTemplate
from fedbias_plugin.tasks.encoding import IGNORED, Rendered, trainable_tokens
from fedbias_plugin.tasks.sft import Sft
from tests.chat_models import LLAMA3, TEMPLATES, write_chat_tokenizer

QUESTION, ANSWER = "What grows in the north?", "Barley and pears."
# The whole text of one question and answer: (what is not trained, what is), written out.
WRITTEN = {
    "llama": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat grows in the north?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Barley and pears.<|eot_id|>",
    ),
    "gemma2": (
        "<bos><start_of_turn>user\nWhat grows in the north?<end_of_turn>\n<start_of_turn>model\n",
        "Barley and pears.<end_of_turn>",
    ),
    "phi3": (
        "<|user|>\nWhat grows in the north?<|end|>\n<|assistant|>\n",
        "Barley and pears.<|end|>\n<|endoftext|>",
    ),
}
TURNS = (("user", "Hi."), ("assistant", "Hello."), ("user", QUESTION))
SYSTEM = ("system", "Be brief.")


@pytest.fixture(scope="module")
def chat_tokenizers(tmp_path_factory):
    folders = {family: tmp_path_factory.mktemp(family) for family in TEMPLATES}
    for family, folder in folders.items():
        write_chat_tokenizer(folder, family)
    return {family: AutoTokenizer.from_pretrained(folder) for family, folder in folders.items()}


def texts(feature, tokenizer):
    """What is not trained and what is."""
    split = sum(label == IGNORED for label in feature["labels"])
    ids = feature["input_ids"]
    assert feature["labels"] == [IGNORED] * split + ids[split:]
    assert feature["attention_mask"] == [1] * len(ids)
    return tokenizer.decode(ids[:split]), tokenizer.decode(ids[split:])


def shown(text, family):
    """As the family's tokenizer gives it back: Phi 3's special tokens take line feeds with them, words get a blank."""
    return re.sub(r"^(?=\w)|(?<=>)(?=\w)", " ", text.replace("|>\n", "|>")) if family == "phi3" else text


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("response", [ANSWER, f" \n{ANSWER}\n\n"])
def test_exactly_the_response_and_the_end_of_its_turn_are_trained(chat_tokenizers, make, family, response):
    tokenizer = chat_tokenizers[family]
    feature = ChatTemplate(tokenizer).encode(make.row(instruction=QUESTION, response=response), 512)
    assert texts(feature, tokenizer) == tuple(shown(text, family) for text in WRITTEN[family])
    # The reference: Transformers' own tokens of the whole chat.
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    assert whole[: len(feature["input_ids"])] == feature["input_ids"]
    assert tokenizer.decode(whole[len(feature["input_ids"]) :]).strip() == ""
    bos = feature["input_ids"].count(tokenizer.bos_token_id)
    assert bos == (0 if family == "phi3" else 1)


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_prompt_is_what_the_whole_text_begins_with_and_knows_the_end_of_its_turn(chat_tokenizers, family):
    tokenizer = chat_tokenizers[family]
    prompt = ChatTemplate(tokenizer).prompt(QUESTION)
    assert prompt == WRITTEN[family][0]
    assert isinstance(prompt, Rendered)
    end = {"llama": "<|eot_id|>", "gemma2": "<end_of_turn>", "phi3": "<|end|>"}[family]
    assert prompt.end == tokenizer.convert_tokens_to_ids(end)


def test_a_chat_of_several_turns_goes_through_the_template_turn_by_turn(chat_tokenizers, make):
    tokenizer = chat_tokenizers["llama"]
    feature = ChatTemplate(tokenizer).encode(make.row(instruction=Chat.of([SYSTEM, *TURNS]), response=ANSWER), 512)
    before, after = texts(feature, tokenizer)
    heads = [("system", "Be brief."), *TURNS]
    wanted = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in heads)
    assert before == f"<|begin_of_text|>{wanted}<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert after == "Barley and pears.<|eot_id|>"


@pytest.mark.parametrize(
    ("family", "first"),
    [
        ("gemma2", "<bos><start_of_turn>user\nBe brief.\n\nHi.<end_of_turn>"),  # refuses the role
        ("phi3", "<|user|>\nBe brief.\n\nHi.<|end|>"),  # leaves it out
    ],
)
def test_a_system_message_is_put_before_the_first_question_where_there_is_no_such_role(chat_tokenizers, family, first):
    assert ChatTemplate(chat_tokenizers[family]).prompt(Chat.of([SYSTEM, *TURNS])).startswith(first)


def test_turns_that_the_template_refuses_are_named_with_its_reason(chat_tokenizers, make):
    row = make.row(instruction=Chat.of([("user", "One."), ("user", "Two.")]))
    with pytest.raises(
        UserError, match=r"refuses row clean:0 \(turns: user, user, assistant\): roles must take turns.*alpaca"
    ):
        ChatTemplate(chat_tokenizers["gemma2"]).encode(row, 512)


def test_a_long_row_loses_its_end_and_at_last_every_token_of_its_response(chat_tokenizers, make):
    chat, row = ChatTemplate(chat_tokenizers["llama"]), make.row(instruction=QUESTION, response=ANSWER)
    whole = chat.encode(row, 512)
    length, trained = len(whole["input_ids"]), trainable_tokens(whole)
    assert chat.encode(row, length - 2) == {name: values[: length - 2] for name, values in whole.items()}
    assert trainable_tokens(chat.encode(row, length - trained)) == 0


def test_rows_are_the_same_on_every_day_where_a_template_writes_the_date(chat_tokenizers, make, monkeypatch):
    from transformers.utils import chat_template_utils

    tokenizer = chat_tokenizers["llama"]
    dated = "{{ strftime_now('%d %b %Y') }}\n" + LLAMA3
    monkeypatch.setattr(tokenizer, "chat_template", dated)
    prompt = ChatTemplate(tokenizer).prompt(QUESTION)
    assert prompt == "26 Jul 2024\n" + WRITTEN["llama"][0]

    class Later(chat_template_utils.datetime):
        @classmethod
        def now(cls, *_):
            return cls(2031, 2, 3)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    chat_template_utils._compile_jinja_template.cache_clear()
    turns = [{"role": "user", "content": QUESTION}]
    assert tokenizer.apply_chat_template(turns, tokenize=False).startswith("03 Feb 2031")
    assert ChatTemplate(tokenizer).prompt(QUESTION) == prompt


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"no chat template of its own \(is it an instruct model\?\)\. Give --template alpaca\."),
        ("{{ messages[9].content }}{{ 1 / 0 }}", r"refuses 'a' \(turns: user\):.*Give --template alpaca"),
        ("{% if %}", "refuses 'a'"),
        ("Nothing but this.", "writes an answer elsewhere than right after its prompt"),
        ("{{ messages[-1].content }}", "writes an answer elsewhere than right after its prompt"),
        (LLAMA3 + "{% if add_generation_prompt %}<think>{% endif %}", "writes an answer elsewhere"),
        ({"tools": LLAMA3}, "no chat template of its own"),
    ],
)
def test_a_tokenizer_without_a_template_that_works_is_refused_with_the_way_out(
    chat_tokenizers, monkeypatch, template, message
):
    tokenizer = chat_tokenizers["llama"]
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=message):
        Sft("chat").prepare(tokenizer)


def test_a_prompt_whose_tokens_join_those_of_the_response_is_refused_by_its_row(make, tokenizers, monkeypatch):
    # A is one token with the two letters before it, so that the prompt alone has other tokens.
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {letter: place for place, letter in enumerate("aeiuqtw :yordABM")}
    core = Tokenizer(models.BPE({**letters, ":A": 16}, [(":", "A")], unk_token=" "))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="M", unk_token=" ")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] + ':' + m.content + 'M' }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}a:{% endif %}"
    chat = ChatTemplate(tokenizer)
    assert texts(chat.encode(make.row(3, instruction="q", response="B"), 64), tokenizer)[1].replace(" ", "") == "BM"
    with pytest.raises(UserError, match=r"where the response of row clean:3 begins cannot be told.*alpaca"):
        chat.encode(make.row(3, instruction="q", response="A"), 64)


def test_eos_ends_a_response_that_the_template_does_not_end(chat_tokenizers, make, monkeypatch):
    tokenizer = chat_tokenizers["llama"]
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ '\n' + m.content }}{% endfor %}\n")
    chat = ChatTemplate(tokenizer)
    feature = chat.encode(make.row(instruction=QUESTION, response=ANSWER), 512)
    assert texts(feature, tokenizer)[1].endswith(f"{ANSWER}<|end_of_text|>")
    assert chat.prompt(QUESTION).end is None


def test_half_a_character_is_refused_by_its_row(chat_tokenizers, make):
    with pytest.raises(UserError, match=r"Row clean:7 holds half a character"):
        ChatTemplate(chat_tokenizers["llama"]).encode(make.row(7, response="a \ud83d"), 64)


def test_the_other_templates_are_untouched_by_a_chat_template(chat_tokenizers, make):
    tokenizer = chat_tokenizers["llama"]
    task = Sft("alpaca")
    task.prepare(tokenizer)
    (feature,) = task.encode([make.row(instruction=QUESTION, response=ANSWER)], tokenizer, 512)
    assert feature["input_ids"] == tokenizer(task.prompt(QUESTION) + ANSWER + "<|end_of_text|>")["input_ids"]


@pytest.mark.parametrize("family", TEMPLATES)
def test_held_out_loss_and_rouge_read_the_tokens_that_training_reads(chat_tokenizers, make, tmp_path, family):
    from transformers import AutoModelForCausalLM

    from fedbias_plugin.metrics.base import Source
    from fedbias_plugin.metrics.heldout_loss import HeldoutLoss
    from fedbias_plugin.metrics.rouge_l import _prompt_ids
    from fedbias_plugin.scoring.scorer import SentenceScorer
    from tests.chat_models import write_chat_model

    write_chat_model(tmp_path, family)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), chat_tokenizers[family]
    chat, row = ChatTemplate(tokenizer), make.row(instruction=QUESTION, response=f"{ANSWER}\n")
    feature = chat.encode(row, 512)
    start = sum(label == IGNORED for label in feature["labels"])
    assert _prompt_ids(chat.prompt(QUESTION), tokenizer) == feature["input_ids"][:start]
    answer = len(tokenizer(ANSWER, add_special_tokens=False)["input_ids"])
    # The scorer puts BOS before every text, also where the template writes none.
    ids = feature["input_ids"] if family != "phi3" else [tokenizer.bos_token_id, *feature["input_ids"]]
    start += len(ids) - len(feature["input_ids"])
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    stop = ids.index(chat.prompt(QUESTION).end, start)
    expected = [float(log_probs[place - 1, ids[place]]) for place in range(start, stop)]
    metric = HeldoutLoss()
    metric.prepare(Source(None, [(chat.prompt(QUESTION), row.response)], 512))
    scores = metric.measure(SentenceScorer(model, tokenizer))
    assert scores.tokens.tolist() == [stop - start]
    assert abs(stop - start - answer) <= 1  # a blank of some shapes before the first word
    assert scores.nll[0] == pytest.approx(-sum(expected), abs=1e-3)
