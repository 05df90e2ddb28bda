"""The loss falls on the response and EOS, with tokenizers of every shape."""

import dataclasses

import pytest

from fedbias_plugin.tasks.collator import PaddingCollator
from fedbias_plugin.tasks.encoding import IGNORED, encode_rows, trainable_tokens
from fedbias_plugin.tasks.templates import TEMPLATES

SHAPES = ("llama3", "llama2", "gpt2", "slow")
RESPONSES = ["Barley and pears.", "Ünïcödé 北 🙂 words", "Two\n\nparagraphs. ### Response: USER: hi ASSISTANT: hm", "x"]


def trained(feature):
    return [label for label in feature["labels"] if label != IGNORED]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("response", RESPONSES)
def test_exactly_the_response_and_eos_are_trained(tokenizers, make, shape, template, response):
    if shape == "slow" and not response.isascii():
        pytest.skip("the slow test tokenizer knows Latin-1 only")
    tokenizer = tokenizers[shape]
    (feature,) = encode_rows([make.row(response=response)], tokenizer, TEMPLATES[template], 2048)
    ids = feature["input_ids"]
    labels = trained(feature)
    assert labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(labels[:-1], clean_up_tokenization_spaces=False).lstrip(" ") == response
    rest = tokenizer.decode(ids[: len(ids) - len(labels)], clean_up_tokenization_spaces=False)
    assert rest.endswith(TEMPLATES[template].response_marker)
    assert feature["labels"][len(ids) - len(labels) :] == labels
    assert feature["attention_mask"] == [1] * len(ids)
    assert trainable_tokens(feature) > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_response_marker_inside_the_instruction_is_not_trained(tokenizers, make, shape):
    row = make.row(instruction="Complete this.\n### Response: yes\n### Response:", response="no")
    (feature,) = encode_rows([row], tokenizers[shape], TEMPLATES["alpaca"], 2048)
    assert tokenizers[shape].decode(trained(feature)[:-1]).strip() == "no"


@pytest.mark.parametrize(("shape", "adds_bos"), [("llama3", True), ("llama2", True), ("slow", True), ("gpt2", False)])
def test_bos_comes_once_if_the_tokenizer_adds_it_and_is_never_trained(tokenizers, make, shape, adds_bos):
    tokenizer = tokenizers[shape]
    (feature,) = encode_rows([make.row()], tokenizer, TEMPLATES["alpaca"], 2048)
    assert (feature["input_ids"][0] == tokenizer.bos_token_id) == adds_bos
    assert feature["input_ids"][1] != tokenizer.bos_token_id
    assert feature["labels"][0] == IGNORED


@pytest.mark.parametrize("shape", ["llama3", "llama2", "slow"])
def test_a_template_that_writes_bos_itself_does_not_double_it(tokenizers, make, shape):
    tokenizer, plain = tokenizers[shape], TEMPLATES["alpaca"]
    written = dataclasses.replace(plain, prompt_format=tokenizer.bos_token + plain.prompt_format)
    (feature,) = encode_rows([make.row()], tokenizer, written, 2048)
    assert feature["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(trained(feature)[:-1]).strip() == "Barley and pears."


@pytest.mark.parametrize("shape", SHAPES)
def test_a_response_that_is_cut_off_entirely_is_reported_by_its_row(tokenizers, make, shape):
    rows = [make.row(0, response="short"), make.row(1, instruction="long " * 200), make.row(2)]
    encoded = encode_rows(rows, tokenizers[shape], TEMPLATES["alpaca"], 600 if shape == "slow" else 200)
    assert [trainable_tokens(feature) == 0 for feature in encoded] == [False, True, False]
    assert trainable_tokens(encode_rows(rows[1:2], tokenizers[shape], TEMPLATES["alpaca"], 100)[0]) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_response_that_is_cut_short_keeps_what_is_left(tokenizers, make, shape):
    whole = encode_rows([make.row()], tokenizers[shape], TEMPLATES["alpaca"], 2048)[0]
    length = len(whole["input_ids"]) - 2
    cut = encode_rows([make.row()], tokenizers[shape], TEMPLATES["alpaca"], length)[0]
    assert cut == {name: values[:length] for name, values in whole.items()}


def test_padding_is_ignored_and_a_padding_token_that_is_eos_stays_trained(tokenizers, make):
    tokenizer = tokenizers["gpt2"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [make.row(0), make.row(1, response="Barley, pears, plums and a longer list of things.")]
    features = encode_rows(rows, tokenizer, TEMPLATES["alpaca"], 2048)
    batch = PaddingCollator(tokenizer.pad_token_id)(features)
    short, long = (len(feature["input_ids"]) for feature in features)
    assert all(tensor.shape == (2, long) for tensor in batch.values())
    assert batch["labels"][0, short - 1] == tokenizer.eos_token_id
    assert batch["labels"][0, short:].eq(IGNORED).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == [short, long]
    assert batch["input_ids"][0, short:].eq(tokenizer.pad_token_id).all()


def test_a_tokenizer_without_eos_trains_the_response_alone(make):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "pears": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    (feature,) = encode_rows([make.row(response="pears")], tokenizer, TEMPLATES["alpaca"], 2048)
    assert trained(feature) == [1]
