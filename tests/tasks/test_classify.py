"""Classification: rows with labels, models with heads, and what does not go together with it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.partition import ClientDataset, Partition, manifest
from fedbias_plugin.data.rows import Row, usual_response
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.builtin.resolve import resolve
from fedbias_plugin.metrics.heldout_accuracy import HeldoutAccuracy, LabelledRows
from fedbias_plugin.registry import build
from fedbias_plugin.tasks.base import ModelKind, RowScores
from fedbias_plugin.tasks.textcnn import TextCnn, word_ids
from fedbias_plugin.training.models import load_model, model_outline
from fedbias_plugin.training.parameters import prepared, read_state
from fedbias_plugin.training.trainables import Full, Lora

TEXTS = ["the baker is kind", "who opened the shop in the morning", "rain", "a short story of a lamp and a bridge"]


def partition(labels, heldout="ab"):
    def rows(names, start):
        return tuple(Row(f"r:{start + n}", f"text {n}", label, False, "r") for n, label in enumerate(names))

    return Partition([ClientDataset(0, rows(labels, 0))], rows(heldout, len(labels)), {}, 0)


def task(labels="aabbc", **flags):
    made = build("task", "classify", BiasArguments(task="classify", scenario="3C", bias_benchmarks="none", **flags))
    made.read(partition(labels))
    return made


def tokenizer_of_an_encoder():
    """As BERT's: CLS, SEP and PAD, neither BOS nor EOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {
        word: place
        for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({*" ".join(TEXTS).split()})])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


BERT_LIKE = ["pre_classifier", "classifier"]
SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "eos_token_id": 3}
DISTILBERT = {"vocab_size": 40, "dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
SHAPES = {
    "distilbert": (transformers.DistilBertConfig(**DISTILBERT), "DistilBertForMaskedLM", BERT_LIKE),
    "roberta": (transformers.RobertaConfig(**SMALL, max_position_embeddings=64), "RobertaForMaskedLM", ["classifier"]),
    "llama": (transformers.LlamaConfig(**SMALL, eos_token_id=3, bos_token_id=2), "LlamaForCausalLM", ["score"]),
    "gpt2": (transformers.GPT2Config(**GPT2), "GPT2LMHeadModel", ["score"]),
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def checkpoint(request, tmp_path):
    """A language model on disk, its kind, and the heads of the classifier that is made of it."""
    config, language_model, heads = SHAPES[request.param]
    torch.manual_seed(11)
    getattr(transformers, language_model)(config).save_pretrained(tmp_path)
    return str(tmp_path), heads


def test_encoders_and_decoders_get_a_head_that_trains_whole_and_padding_changes_no_logit(checkpoint):
    path, heads = checkpoint
    kind = task().model_kind
    model = load_model(path, kind=kind, seed=5, device="cpu")
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    rows = [Row(f"t:{n}", text, "a", False, "t") for n, text in enumerate(TEXTS)]
    features = task().encode(rows, tokenizer_of_an_encoder(), 32)
    collate = task().collator(model.config.pad_token_id)
    with torch.no_grad():
        together = model(**collate(features)).logits
        alone = torch.cat([model(**collate([feature])).logits for feature in features])
    assert torch.allclose(together, alone, atol=1e-5)
    adapted = prepared(model, Lora(peft_lora_target_modules="all-linear"), 7)
    names = set(read_state(adapted))
    for head in heads:
        assert any(f".{head}." in name and "lora" not in name for name in names), names
        assert not any(f".{head}." in name and "lora" in name for name in names), names
    before = read_state(adapted)
    adapted.train()
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], lr=0.01)
    for _ in range(2):
        adapted(**collate(features)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = read_state(adapted)
    moved = {name for name in names if not torch.equal(before[name], after[name])}
    assert {name for name in names if "lora" in name or name.endswith("weight")} <= moved


def test_a_new_head_is_drawn_from_the_seed_and_random_weights_leave_the_checkpoint_aside(checkpoint):
    path, heads = checkpoint
    kind = task().model_kind

    def weights(seed, kind=kind):
        return load_model(path, kind=kind, seed=seed, device="cpu").state_dict()

    one, again, other, drawn = weights(1), weights(1), weights(2), weights(1, replace(kind, random_weights=True))
    assert all(torch.equal(one[name], again[name]) for name in one)
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert differ
    assert all(name.startswith(tuple(heads)) for name in differ)
    base = [name for name in one if not name.startswith(tuple(heads)) and one[name].ndim > 1]
    assert not any(torch.equal(one[name], drawn[name]) for name in base)
    assert {one.dtype for one in drawn.values()} == {torch.float32}


def test_lora_on_distilbert_s_queries_and_values_trains_as_many_weights_as_are_known(tmp_path):
    transformers.DistilBertConfig().save_pretrained(tmp_path)
    outline = model_outline(str(tmp_path), kind=ModelKind("AutoModelForSequenceClassification", {"num_labels": 8}))
    adapted = Lora(peft_lora_r=8, peft_lora_target_modules="q_lin,v_lin").prepare(outline, 0)
    trained = {name: one.numel() for name, one in adapted.named_parameters() if one.requires_grad}
    adapters = sum(count for name, count in trained.items() if "lora_" in name)
    assert (adapters, sum(trained.values()) - adapters) == (147_456, 596_744)


def test_textcnn_has_2_7_million_weights_and_a_row_s_logits_depend_on_no_other_row(tmp_path):
    labels = [f"label {n}" for n in range(8)]
    made = task([label for label in labels for _ in range(4)], classifier="textcnn", label_field="kind")
    made.read(partition([label for label in labels for _ in range(4)], heldout=[]))
    model = load_model("nowhere", kind=made.model_kind, seed=3, device="cpu")
    assert isinstance(model, TextCnn)
    assert model.num_parameters() == 20_000 * 128 + (3 + 4 + 5) * 128 * 100 + 300 + 300 * 8 + 8 == 2_716_308
    features = made.encode([Row(f"t:{n}", text, labels[n], False, "t") for n, text in enumerate(TEXTS)], None, 32)
    collate = made.collator(99)
    with torch.no_grad():
        together = model(**collate(features)).logits
        alone = torch.cat([model(**collate([feature])).logits for feature in features])
    assert torch.allclose(together, alone, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded = TextCnn.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**collate(features)).logits, together)
    assert loaded.config.id2label[7] == "label 7"
    assert word_ids("Kind, KIND")[0] == word_ids("kind")[0]
    assert word_ids("...") == [word_ids(".")[0]] * 3
    assert len(word_ids("")) == 1
    with pytest.raises(UserError, match="LoRA adapts a pretrained model, and TextCnn is none: give --use_peft false"):
        Lora().prepare(model, 0)
    assert len(read_state(prepared(model, Full(), 0))) == 9


def test_accuracy_is_of_the_likeliest_label_and_stands_beside_the_majority_label_s():
    majority = usual_response(row for dataset in partition("aaabb").clients for row in dataset.rows)
    metric = HeldoutAccuracy()
    rows = partition("", heldout="aabbb").heldout
    scores = RowScores(np.array([0.1, 0.2, 0.3, 2.0, 0.4]), np.ones(5), np.array([1, 1, 1, 0, 1]))
    metric.prepare(SimpleNamespace(labelled=LabelledRows(rows, lambda *_: scores, majority, 2)))
    block = metric.block(metric.result(metric.measure(None), seed=0))
    assert (block["value"], block["n"], block["majority"], block["labels"]) == (0.8, 5, 0.4, 2)
    assert block["loss"] == pytest.approx(0.6)
    assert block["ci95"] == pytest.approx([0.3755, 0.9638], abs=1e-4)
    assert not list(metric.warnings(block, {}))
    assert "worse than guessing" in next(metric.warnings(block | {"loss": 3.0}, {}))


@pytest.mark.parametrize(
    ("labels", "message"),
    [("aaaaa", "needs two"), ("abcdefghijkl", "12 values in 12 rows to train on: that is no column of labels")],
)
def test_labels_that_are_none_are_refused(labels, message):
    made = task()
    with pytest.raises(UserError, match=message):
        made.read(partition(labels, heldout=labels[0]))
    with pytest.raises(UserError, match="Row r:0 has the label 'z', which is none of the run's: a, b, c"):
        task().encode(partition("z").clients[0].rows, tokenizer_of_an_encoder(), 8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"aggregation": "bama"},
            "--aggregation bama weighs clients by bias scores, which --task classify has none of",
        ),
        ({"bias_benchmarks": "crows_pairs"}, "--bias_benchmarks crows_pairs needs a model that writes or scores texts"),
        ({"rouge_samples": 4}, "--rouge_samples 4 needs"),
        ({"cda_ratio": 0.5}, "--cda_ratio 0.5 needs"),
        ({"dp_epsilon": 3.0}, "--dp_epsilon 3.0 needs"),
        ({"scenario": "1B2C"}, "--scenario 1B2C has biased rows, and those of BiasDPO have no label to be told"),
        ({"local_baseline": True}, "--local_baseline is an accuracy on clients' own test rows"),
    ],
)
def test_what_needs_a_language_model_is_refused_before_training(flags, message):
    with pytest.raises(UserError, match=message):
        BiasArguments(**{"task": "classify", "scenario": "3C", "bias_benchmarks": "none"} | flags)


def test_the_task_brings_its_own_defaults_which_give_way_to_what_is_written():
    host, bias, _ = resolve([("command line", {"task": "classify"})])
    assert (bias.scenario, bias.bias_benchmarks, host.use_peft, host.learning_rate) == ("3C", "none", True, 4e-3)
    host, bias, _ = resolve([("command line", {"task": "classify", "classifier": "textcnn", "heldout_samples": 9})])
    assert (host.use_peft, host.learning_rate, host.gradient_checkpointing, bias.heldout_samples) == (
        False,
        1e-3,
        False,
        9,
    )
    assert resolve([("command line", {})])[1].scenario == "1B2C"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_text_and_label_are_read_from_the_columns_that_are_named(tmp_path):
    rows = [
        {"Title": "a", "stars": 1, "lang": "en"},
        {"Title": "b", "stars": 0, "lang": "de"},
        {"Title": "c", "stars": None, "lang": "de"},
    ]
    path = write(tmp_path / "mine.jsonl", rows)
    source = load_rows(path, "clean", fields=("title", "stars"))
    assert [(row.instruction, row.response, row.labels) for row in source.rows] == [
        ("a", "1", {"lang": "en", "stars": "1"}), ("b", "0", {"lang": "de", "stars": "0"}),
    ]  # fmt: skip
    assert source.empty == 1
    with pytest.raises(
        UserError, match=r"mine.jsonl: --label_field 'star' is no column of it; found 'Title', .*'stars'"
    ):
        load_rows(path, "clean", fields=("title", "star"))
    with pytest.raises(UserError, match="both name the column 'Title'"):
        load_rows(path, "clean", fields=("title", "Title"))
    with pytest.raises(UserError, match="--text_field 'text' is no column"):
        load_rows("mini-clean", "clean", fields=("text", "output"))


def test_a_text_under_several_labels_is_dropped_with_a_note_and_a_repeated_row_is_kept_once(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [("a", "x"), ("b", "x"), ("a", "y"), ("b", "x"), ("c", "y"), ("a", "z"), ("B", "y")]
    path = write(tmp_path / "mine.jsonl", [{"text": text, "label": label} for text, label in rows])
    source = load_rows(path, "clean", fields=("text", "label"))
    assert [(row.id[-1], row.instruction) for row in source.rows] == [("1", "b"), ("4", "c"), ("6", "B")]
    assert (source.duplicates, source.contradicting) == (1, 3)
    assert "dropped 1 repeated and 3 whose text stands under several labels" in caplog.text
    sources = manifest(Partition([], (), {"clean": source}, 0))["sources"]
    assert (sources["clean"]["dropped_repeated"], sources["clean"]["dropped_contradicting"]) == (1, 3)
    path = write(tmp_path / "two.jsonl", [{"text": "a", "label": label} for label in "xy"])
    with pytest.raises(UserError, match="every one of its 2 rows has a text that stands under several labels"):
        load_rows(path, "clean", fields=("text", "label"))


def test_the_bundled_labelled_set_is_taken_where_dolly_is_not_here(monkeypatch):
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)
    source = load_rows("auto", "clean", "mini", fields=("instruction", "category"))
    assert (source.name, len(source.rows), len({row.response for row in source.rows})) == ("mini-labelled", 2600, 8)
    assert len({row.instruction for row in source.rows}) == 2600
