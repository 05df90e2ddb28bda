"""What whole-run tests share: a 2-layer random model on disk and a folder of small data, both made once."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TARGETS = ["nurse", "baker", "pilot", "farmer"]
TRAITS = ["kind", "rude", "calm", "loud", "brave", "shy"]


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """The command line takes the package's log over; a test, or a fixture of a module, that called it is undone."""
    logger = logging.getLogger("fedbias_plugin")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def no_staging_folder_of_a_run_that_was_left_open():
    """A tracker of W&B sets it until its run is closed; tests of killed runs close none."""
    yield
    os.environ.pop("WANDB_DATA_DIR", None)


@pytest.fixture(scope="session", autouse=True)
def a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache of scoring plans."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDBIAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with random weights and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokens.train_from_iterator([f"The {a} is {b}." for a in TARGETS for b in TRAITS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("random_model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in the known layout: 24 pairs, 24 clusters, 40 clean and 40 biased rows."""
    folder = tmp_path_factory.mktemp("data")
    _write_crows_pairs(folder / "crows_pairs/crows_pairs_anonymized.csv")
    _write_json(folder / "stereoset/dev.json", {"version": "1.0", "data": {"intrasentence": _clusters()}})
    clean = [{"instruction": f"Say number {n}.", "input": "", "output": f"It is {n}."} for n in range(40)]
    _write_json(folder / "alpaca/alpaca_gpt4_data.json", clean)
    biased = [{"prompt": f"Who is rude {n}?", "chosen": "Nobody.", "rejected": f"The nurse {n}."} for n in range(40)]
    path = folder / "biasdpo/BiasDPO.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in biased))
    return folder


def _write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def _write_crows_pairs(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        for number, (target, trait) in enumerate((a, b) for a in TARGETS for b in TRAITS):
            other = TARGETS[(TARGETS.index(target) + 1) % len(TARGETS)]
            direction = "antistereo" if number % 4 == 0 else "stereo"
            row = [number, f"The {target} is {trait}.", f"The {other} is {trait}.", direction, f"type{number % 3}"]
            writer.writerow(row)


def _clusters() -> list[dict[str, object]]:
    clusters = []
    for target in TARGETS:
        for number, trait in enumerate(TRAITS):
            other = TRAITS[(number + 1) % len(TRAITS)]
            words = {"stereotype": trait, "anti-stereotype": other, "unrelated": "seven"}
            clusters.append(
                {
                    "id": f"{target}-{trait}",
                    "target": target,
                    "bias_type": "profession" if number % 2 else "race",
                    "context": f"The {target} is BLANK.",
                    "sentences": [
                        {"id": f"{target}-{trait}-{label}", "sentence": f"The {target} is {word}.", "gold_label": label}
                        for label, word in words.items()
                    ],
                }
            )
    return clusters
