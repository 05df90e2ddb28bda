"""Between the host's rows and the plugin's: which tokens are trained, whose rows are whose, how shards are dealt."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from fedbias_plugin.data.rows import Row
from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments, AttachedArguments
from fedbias_plugin.hosts.openfedllm.client_data import ClientData
from fedbias_plugin.hosts.openfedllm.host_rows import (
    conversation_prompt,
    encode_dataset,
    instruction_dataset,
    preference_dataset,
    strided_shards,
)
from fedbias_plugin.tasks.encoding import trainable_tokens
from tests.golden import golden_file

DOUBLE = Path(__file__).parents[1] / "openfedllm_double"
TEXTS = [
    "Barley and pears.",
    "Two\n\nparagraphs.\n### Response: USER: hi ASSISTANT: hm",
    "### Response:",
    " ASSISTANT: x",
    "<b>a tag</b>",
]
INSTRUCTIONS = ["What grows?", "Complete this.\n### Response: yes\n\n### Response:", "USER: a ASSISTANT: b ASSISTANT:"]


def phi3_like() -> Any:
    """Llama 2's, with its own token for padding and for the end."""
    from tests.training.conftest import llama2_like

    tokenizer = llama2_like()
    end = "<|endoftext|>"
    tokenizer.add_special_tokens({"eos_token": end, "pad_token": end})
    return tokenizer


def mistral_like() -> Any:
    """Llama 2's, without a token for padding."""
    from tests.training.conftest import llama2_like

    tokenizer = llama2_like()
    tokenizer.pad_token = None
    return tokenizer


def gemma2_like() -> Any:
    """Blanks become U+2581, and none is put before the text; byte fallback; adds ``<bos>``."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from tests.training.conftest import CORPUS

    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=special))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module", params=["llama3", "mistral", "phi3", "gemma2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Tokenizers built with today's library; the pinned one cannot read those of LLaMA 3, Phi-3 and Gemma 2."""
    from fedbias_plugin.hosts.openfedllm.stack import detect_stack

    if detect_stack() != "current":
        pytest.skip("the pinned libraries do not have these tokenizers")
    from tests.training.conftest import llama3_like

    builders = {"llama3": llama3_like, "mistral": mistral_like, "phi3": phi3_like, "gemma2": gemma2_like}
    return builders[request.param]()


def formatting(template: str, eos: str) -> tuple[Any, str]:
    """The host's own, from the double."""
    spec = importlib.util.spec_from_file_location("template_of_the_double", DOUBLE / "utils/template.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_formatting_prompts_func(template, eos)


def split_at_labels(feature: dict[str, list[int]], tokenizer: Any) -> tuple[str, str]:
    """What is not trained and what is, as text; the trained part must be the end of the row."""
    ids, labels = feature["input_ids"], feature["labels"]
    trained = [label for label in labels if label != -100]
    assert labels == [-100] * (len(ids) - len(trained)) + ids[len(ids) - len(trained) :]
    head = tokenizer.decode(ids[: len(ids) - len(trained)], clean_up_tokenization_spaces=False)
    return head, tokenizer.decode(trained, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("template", ["alpaca", "vicuna"])
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_exactly_the_response_and_eos_are_trained_with_the_host_s_templates(tokenizer, template, instruction):
    texts_of, marker = formatting(template, tokenizer.eos_token)
    rows = Dataset.from_dict({"instruction": [instruction] * len(TEXTS), "response": TEXTS})
    features = encode_dataset(rows, texts_of, marker, tokenizer, 2048)
    for response, feature in zip(TEXTS, features, strict=True):
        head, trained = split_at_labels(feature, tokenizer)
        assert trained.lstrip(" ") == response.lstrip(" ") + tokenizer.eos_token
        assert head.endswith(marker.strip())
        assert instruction in head


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_a_template_whose_marker_is_not_in_its_text_trains_what_differs_from_an_empty_response(tokenizer, instruction):
    def texts_of(batch):
        rows = zip(batch["instruction"], batch["response"], strict=True)
        return [f"Q {asked}\nA {answer}{tokenizer.eos_token}" for asked, answer in rows]

    rows = Dataset.from_dict({"instruction": [instruction] * len(TEXTS), "response": TEXTS})
    for response, feature in zip(TEXTS, encode_dataset(rows, texts_of, "<|reply|>", tokenizer, 2048), strict=True):
        assert split_at_labels(feature, tokenizer)[1].lstrip(" ") == response.lstrip(" ") + tokenizer.eos_token


def test_rows_are_cut_to_the_sequence_length(tokenizer):
    texts_of, marker = formatting("alpaca", tokenizer.eos_token)
    rows = Dataset.from_dict({"instruction": ["What?"] * 2, "response": ["Pears.", "Barley and pears, " * 20]})
    whole = encode_dataset(rows, texts_of, marker, tokenizer, 2048)
    length = len(whole[0]["input_ids"]) - 1
    cut = encode_dataset(rows, texts_of, marker, tokenizer, length)
    assert cut == [{name: values[:length] for name, values in feature.items()} for feature in whole]
    assert not any(map(trainable_tokens, encode_dataset(rows, texts_of, marker, tokenizer, 10)))


def test_shards_take_every_nth_row_inside_and_the_library_s_own_way_outside():
    rows, own = Dataset.from_dict({"row": list(range(8))}), Dataset.shard
    with strided_shards():
        assert [rows.shard(3, client)["row"][:] for client in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
        assert rows.shard(num_shards=2, index=1)["row"][:] == [1, 3, 5, 7]
        assert rows.shard(2, 1, contiguous=True)["row"][:] == [4, 5, 6, 7]
    assert Dataset.shard is own
    with pytest.raises(ZeroDivisionError), strided_shards():
        raise ZeroDivisionError
    assert Dataset.shard is own


def test_rows_are_shuffled_and_split_as_recorded_from_the_host():
    recorded = json.loads(golden_file("openfedllm_aggregate.json").read_text())["process_and_split"]
    for case in recorded["strided_datasets_2.13.0"]:
        rows = Dataset.from_dict({"row": case["process_order_original_indices"]})
        data = client_data(num_clients=case["num_clients"])

        def of_host(dataset: Dataset, seed: int, clients: int) -> list[Dataset]:
            return [dataset.shuffle(seed=seed).shard(clients, client) for client in range(clients)]

        found = data.split(of_host, rows, case["seed"], case["num_clients"])
        assert [client["row"][:] for client in found] == case["client_original_indices"]


def client_data(**settings: Any) -> ClientData:
    script = SimpleNamespace(batch_size=2, gradient_accumulation_steps=3)
    ours = {spec.name for spec in fields(AttachedArguments)}
    plugin = AttachedArguments(**{name: value for name, value in settings.items() if name in ours})
    fed = {"fed_alg": "fedavg", "split_strategy": "iid"} | settings
    return ClientData(AllArguments(script, SimpleNamespace(**fed), plugin), is_dpo=False)


def test_a_client_is_known_by_its_data_set_whatever_the_order_of_calls():
    data, sets = client_data(num_clients=3), [Dataset.from_dict({"row": [0]}) for _ in range(3)]
    assert data.split(lambda: sets) is sets
    assert [data.client_of(rows, call, [0, 2]) for call, rows in enumerate(reversed(sets))] == [2, 1, 0]


def test_under_a_scenario_rows_that_it_did_not_deal_are_refused():
    data = client_data(num_clients=2, scenario="3C")
    with pytest.raises(UserError, match=r"^This host trains on rows that --scenario 3C did not deal"):
        data.client_of(Dataset.from_dict({"row": [0]}), 0, [0, 1])


def test_a_data_set_nobody_or_more_than_one_was_dealt_belongs_to_the_next_client_of_the_round():
    data, stranger, shared = client_data(num_clients=2), Dataset.from_dict({"row": [0]}), Dataset.from_dict({"row": []})
    data.split(lambda: [shared, shared])
    for rows in (stranger, shared):
        assert [data.client_of(rows, call, [1, 4]) for call in range(3)] == [1, 4, 1]


def test_fewer_data_sets_than_clients_are_refused_unless_one_client_trains_alone():
    message = r"^The host made 1 data sets for 3 clients; --split_strategy 'shards' is not implemented"
    with pytest.raises(UserError, match=message):
        client_data(num_clients=3, split_strategy="shards").split(lambda: [None])
    with pytest.raises(UserError, match=r"^The host made 2 data sets for 3 clients; give --num_clients 2\.$"):
        client_data(num_clients=3).keep([None, None], "give --num_clients 2")
    assert client_data(num_clients=3, fed_alg="local1").split(lambda: [None]) == [None]


def test_rows_of_a_round_are_the_host_s_all_or_the_schedule_s():
    rows = Dataset.from_dict({"row": list(range(20))})
    assert client_data().rows_of_round(rows, 0, 1) is None
    assert client_data(local_epochs=1, schedule_seed=4).rows_of_round(rows, 0, 1) is rows
    drawn = [client_data(schedule_seed=seed).rows_of_round(rows, idx, 1)["row"][:] for seed, idx in ((4, 0), (4, 1))]
    assert [len(set(found)) for found in drawn] == [6, 6]
    assert drawn[0] != drawn[1]


def test_a_row_is_named_by_its_id_or_by_its_place():
    data = client_data()
    data.row_ids = [["clean:4", "clean:9"]]
    assert (data.name_row(0, 1), data.name_row(1, 1)) == ("clean:9", "row 1 of client 1")


ROWS = [Row("a:0", "Who?", "All.", False, "a", "None."), Row("a:1", "Why?", "So.", True, "a", "No.")]


def test_rows_get_the_columns_that_the_host_trains_on():
    assert instruction_dataset(ROWS)[:] == {"instruction": ["Who?", "Why?"], "response": ["All.", "So."]}
    as_they_are = {"prompt": ["Who?", "Why?"], "chosen": ["All.", "So."], "rejected": ["None.", "No."]}
    assert preference_dataset(ROWS, "unused", formatted=True)[:] == as_they_are


def test_preference_rows_come_into_the_host_s_conversation_as_ultrafeedback_does(monkeypatch):
    monkeypatch.syspath_prepend(str(DOUBLE / "utils"))
    module = importlib.import_module("conversation")
    monkeypatch.setitem(sys.modules, "utils", SimpleNamespace(conversation=module))
    monkeypatch.setitem(sys.modules, "utils.conversation", module)
    found = preference_dataset(ROWS, "vicuna_v1.1", formatted=False)
    assert found["prompt"][0].endswith("the user's questions. USER: Who? ASSISTANT:")
    assert (found["chosen"][:], found["rejected"][:]) == ([" All.", " So."], [" None.", " No."])
    with pytest.raises(UserError, match=r"^--template 'vicuna' is no conversation template of this host"):
        conversation_prompt("Who?", "vicuna")


def test_without_the_host_s_conversations_the_sft_template_is_taken():
    assert conversation_prompt("Who?", "vicuna").endswith(" USER: Who? ASSISTANT:")
    with pytest.raises(UserError, match=r"^--template 'llama-9' is unknown; choose one of alpaca"):
        conversation_prompt("Who?", "llama-9")


def test_the_scenario_deals_rows_and_keeps_their_names():
    data = client_data(scenario="3C")
    (found,) = data.deal([SimpleNamespace(rows=ROWS)])
    assert data.client_of(found, 5, [7]) == 0
    assert (data.from_scenario, data.needs_host_rows, data.name_row(0, 1)) == (True, False, "a:1")


@pytest.mark.parametrize(
    ("is_dpo", "settings", "needed"),
    [
        (False, {}, True),
        (True, {}, True),
        (False, {"scenario": "3C"}, False),
        (False, {"scenario": "3C", "preference_dataset": "host"}, False),
        (True, {"scenario": "3C"}, False),
        (True, {"scenario": "3C", "preference_dataset": "host"}, True),
    ],
)
def test_the_host_loads_its_data_set_only_where_it_is_used(is_dpo, settings, needed):
    assert ClientData(AllArguments(None, None, AttachedArguments(**settings)), is_dpo).needs_host_rows is needed
