"""What runs of the double need: a copy of it, small data sets, and two random models whose tokenizers differ."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.hosts.openfedllm.patcher import plan_patch, plan_unpatch
from fedbias_plugin.tasks.templates import TEMPLATES
from tests.hosts.openfedllm.run_results import digests
from tests.hosts.openfedllm.runner import Run, dpo_flags, run_script, sft_flags
from tests.hosts.openfedllm.variants import DOUBLE, make_variant

THINGS = ["a river", "two birds", "the old mill", "rain at night", "bread"]


@pytest.fixture
def double(tmp_path: Path) -> Path:
    """A copy of the double, to be patched and run."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(DOUBLE, tmp_path / "openfedllm", ignore=ignored))


@pytest.fixture
def variant(tmp_path: Path) -> Callable[[str], Path]:
    """``variant("bench")`` -> a copy of the double made like FedLLM-Bench, to be patched and run."""
    return lambda name: make_variant(name, tmp_path / name)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the runs of one test make their folders."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def host_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For ``--local_data_dir {host_data}/``: 40 rows of Alpaca's shape, 24 of UltraFeedback's, 12 of HH-RLHF's.

    In ``by_client`` a file for each script of a host whose data come split, four clients with 9, 10, 11 and 12 rows.
    """
    folder = tmp_path_factory.mktemp("host_rows")  # datasets 2.13 misreads splits below a path with "data/" in it
    _write_rows(folder / "vicgalle/alpaca-gpt4/train.jsonl", [_alpaca_row(number) for number in range(40)])
    preferences = folder / "HuggingFaceH4/ultrafeedback_binarized/data/train_sft-00000-of-00001.jsonl"
    _write_rows(preferences, [_preference_row(number) for number in range(24)])
    _write_rows(folder / "Anthropic/hh-rlhf/train.jsonl", [_dialogue_row(number) for number in range(12)])
    (folder / "by_client").mkdir()
    for script, row in (("main_sft", _answered_row), ("main_dpo", _preferred_row)):
        rows = {str(client): [row(number) for number in range(9 + client)] for client in range(4)}
        (folder / f"by_client/{script}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def host_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers. Its tokenizer has ``<unk>`` and gives two tokens for what stands before " Response:"."""
    folder = tmp_path_factory.mktemp("host_model")
    _write_tokenizer(folder, special=["<unk>", "<s>", "</s>"], word_by_word=True)
    _write_random_llama(folder)
    return folder


@pytest.fixture(scope="session")
def host_model_no_unk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without ``<unk>``, and with ": " as one token, so that the ids of "Response:" are in no row."""
    folder = tmp_path_factory.mktemp("host_model_no_unk")
    _write_tokenizer(folder, special=["<s>", "</s>"], word_by_word=False)
    _write_random_llama(folder)
    return folder


def _alpaca_row(number: int) -> dict[str, str]:
    thing = THINGS[number % len(THINGS)]
    row = {"instruction": f"Write {number} words about {thing}.", "input": "Be kind." if number % 3 == 0 else ""}
    row["output"] = f"Here are {number} words about {thing}" + " and more" * (number % 4) + "."
    return {**row, "text": " ".join(row.values())}


def _preference_row(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"Tell me {number} facts about {THINGS[number % len(THINGS)]}."}
    good = [asked, {"role": "assistant", "content": f"There are {number} facts, and they are good."}]
    bad = [asked, {"role": "assistant", "content": f"No{'!' * (number % 5 + 1)}"}]
    row: dict[str, Any] = {"prompt": asked["content"], "prompt_id": f"{number:04d}", "chosen": good, "rejected": bad}
    return {**row, "messages": good, "score_chosen": 8.0, "score_rejected": 2.0}


def _dialogue_row(number: int) -> dict[str, str]:
    start = f"\n\nHuman: What of {THINGS[number % len(THINGS)]}?"
    if number % 2:
        start += f"\n\nAssistant: It is number {number}.\n\nHuman: And then?"
    return {"chosen": f"{start}\n\nAssistant: I can help.", "rejected": f"{start}\n\nAssistant: Go away {number}."}


def _answered_row(number: int) -> dict[str, str]:
    return {"instruction": f"Say {number}.", "response": f"It is {number}."}


def _preferred_row(number: int) -> dict[str, str]:
    return {"prompt": f"Say {number}.", "chosen": f" It is {number}.", "rejected": " No."}


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_tokenizer(folder: Path, special: list[str], word_by_word: bool) -> None:
    """Byte-level BPE that knows the words of Alpaca's prompt, written by hand: old and new libraries read the same."""
    from tokenizers import pre_tokenizers

    words = re.findall(r" ?\w+|[^\s\w]+", TEMPLATES["alpaca"].prompt_format)
    words = [word.replace(" ", "Ġ") for word in words if set(word).isdisjoint("{}_")]
    merges = {} if word_by_word else {":Ġ": ": Ġ"}
    for word in words:
        merges |= {word[: end + 1]: f"{word[:end]} {word[end]}" for end in range(1, len(word))}
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merges]
    bos, eos, unk = "<s>", "</s>", "<unk>" if "<unk>" in special else None
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": word_by_word}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **plain} for number, token in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, one],
            "pair": [start, one, start, two],
            "special_tokens": {bos: {"id": bos, "ids": [special.index(bos)], "tokens": [bos]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": list(merges.values()),
        },
    }
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    settings |= {"bos_token": bos, "eos_token": eos, "clean_up_tokenization_spaces": False}
    settings |= {"unk_token": unk} if unk else {}
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_random_llama(folder: Path) -> None:
    """Weights drawn in the order of their names, so that old and new libraries make the same model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
    )
    model = LlamaForCausalLM(config)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=draws) * 0.1)
    model.save_pretrained(folder)


@pytest.fixture(params=["double", "OPENFEDLLM_HOME"])
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the double, and of the real host where it is there; not patched."""
    if request.param == "double":
        return request.getfixturevalue("double")
    if not os.environ.get("OPENFEDLLM_HOME"):
        pytest.skip("OPENFEDLLM_HOME names no checkout of the real OpenFedLLM")
    ignored = shutil.ignore_patterns(".git", "__pycache__", "evaluation", "doc")
    return Path(shutil.copytree(os.environ["OPENFEDLLM_HOME"], tmp_path / "openfedllm", ignore=ignored))


@pytest.fixture
def patched(checkout: Path) -> Iterator[Path]:
    """The same, patched; unpatched at the end, when every byte must be as before."""
    before = digests(checkout)
    plan_patch(str(checkout)).write()
    yield checkout
    plan_unpatch(str(checkout)).write()
    assert digests(checkout) == before


@pytest.fixture
def start(tmp_path: Path, host_model: Path, host_data: Path) -> Callable[..., tuple[Path, Run]]:
    """``start(folder, "main_sft.py", "--fed_alg", "scaffold")`` -> the run's folder and how it ended."""

    def run(folder: Path, script: str, *flags: str, output: str = "out") -> tuple[Path, Run]:
        basis = dpo_flags if script == "main_dpo.py" else sft_flags
        (tmp_path / output).mkdir()
        flags = (*basis(host_model, host_data, tmp_path / output), *flags)
        ended = run_script(folder, script, *flags, log=tmp_path / f"{output}.log")
        assert ended.code == 0, ended.text[-3000:]
        return next((tmp_path / output).iterdir()), ended

    return run
