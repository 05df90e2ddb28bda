"""A tokenizer's fingerprint: other tokens or another chat template change it, its use does not."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fedbias_plugin.training.fingerprint import tokenizer_fingerprints
from tests.training.conftest import TOKENIZERS, llama2_like


def edited(change):
    """The tokenizer like Llama-2's with its file changed."""
    core = json.loads(llama2_like().backend_tokenizer.to_str())
    change(core)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core)), **tokens)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_has_its_fingerprint_whatever_it_was_used_for(kind):
    tokenizer, fresh = TOKENIZERS[kind](), TOKENIZERS[kind]()
    before = tokenizer_fingerprints(fresh)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer(["Barley and pears.", "No"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprints(tokenizer) == before
    assert {len(digest) for digest in before.values()} == {64}


def test_the_truncation_of_the_last_call_is_left_as_it_was():
    tokenizer = llama2_like()
    tokenizer("Barley and pears.", truncation=True, max_length=3)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3
    tokenizer_fingerprints(tokenizer)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3


def test_tokenizers_of_different_shapes_have_different_fingerprints(tokenizers):
    assert len({tokenizer_fingerprints(one)["fingerprint"] for one in tokenizers.values()}) == len(tokenizers)


@pytest.mark.parametrize(
    "change",
    [
        lambda core: core["model"]["merges"].pop(),
        lambda core: core["model"]["vocab"].update({"zzzz": len(core["model"]["vocab"])}),
        lambda core: core.update(normalizer=None),
        lambda core: core.update(post_processor=None),
        lambda core: core["added_tokens"].pop(),
    ],
    ids=["merges", "vocabulary", "normalisation", "begin of text", "special tokens"],
)
def test_every_part_of_a_tokenizer_counts(change):
    same, plain = tokenizer_fingerprints(edited(lambda core: None)), tokenizer_fingerprints(llama2_like())
    assert same == plain
    assert tokenizer_fingerprints(edited(change))["fingerprint"] != plain["fingerprint"]


@pytest.mark.parametrize("kind", ["llama3", "slow"])
def test_another_end_of_text_is_another_tokenizer_and_another_chat_template_is_named_by_itself(kind):
    plain = tokenizer_fingerprints(TOKENIZERS[kind]())
    other = TOKENIZERS[kind]()
    other.eos_token = other.bos_token
    assert tokenizer_fingerprints(other)["fingerprint"] != plain["fingerprint"]
    chats = TOKENIZERS[kind]()
    chats.chat_template = "{{ messages }}"
    found = tokenizer_fingerprints(chats)
    assert found["fingerprint"] == plain["fingerprint"]
    assert found["chat_template"] != plain["chat_template"]
