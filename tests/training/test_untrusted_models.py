"""Model and adapter folders of somebody else: loaded without running anything of theirs, or refused with a message."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedbias_plugin.errors import LONGEST_MESSAGE, UserError, printable
from fedbias_plugin.training.models import load_adapter
from tests.models import add_lora, load_model_and_tokenizer


@pytest.fixture
def folder(make, tokenizers, tmp_path):
    """A saved 2-layer Llama."""
    make.model(vocab_size=len(tokenizers["llama3"]), hidden_size=32, intermediate_size=64).save_pretrained(tmp_path)
    tokenizers["llama3"].save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def adapter(make, tmp_path):
    """A saved LoRA adapter."""
    add_lora(make.model(), r=2, alpha=4, seed=1).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(path: Path, **changes: object) -> None:
    """Replace values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(action: Callable[[], object]) -> str | None:
    """The message with which ``action`` refuses, or None when it does not."""
    try:
        action()
    except UserError as error:
        return str(error)
    return None


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_pickle_beside_the_safetensors_is_not_opened(folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    load_model_and_tokenizer(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_adapter_is_refused_and_one_beside_the_safetensors_not_opened(make, adapter, tmp_path):
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    load_adapter(make.model(), str(adapter))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        load_adapter(make.model(), str(adapter))
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_does_not_run_unasked(folder, tmp_path):
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass C: pass\n"
    (folder / "theirs.py").write_text(code)
    change(folder / "config.json", model_type="theirs", auto_map={"AutoConfig": "theirs.C"})
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model_and_tokenizer(str(folder))
    assert not (tmp_path / "ran").exists()


def test_an_attention_kernel_of_the_hub_is_code_too(folder):
    change(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(UserError, match=r"asks for attention code of the hub, 'somebody/kernel'.*attn_implementation"):
        load_model_and_tokenizer(str(folder))


def test_an_adapter_that_has_peft_import_a_module_is_refused(make, adapter, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    change(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="planted")
    with pytest.raises(UserError, match="has a megatron_config, with which peft imports code"):
        load_adapter(make.model(), str(adapter))
    assert not (tmp_path / "ran").exists()
    assert "planted" not in sys.modules


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"peft_type": "\\u001b[2J"}', "[" * 100_000, "\udcff"])
def test_a_damaged_adapter_config_is_a_message(make, adapter, content):
    (adapter / "adapter_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"adapter_config\.json") as caught:
        load_adapter(make.model(), str(adapter))
    assert printable(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"r": "x"}, {"target_modules": 7}, {"rank_pattern": [1]}, {"bias": {}}, {"alpha_pattern": "\ud800"}]
)
def test_an_adapter_config_of_wrong_types_is_a_message_or_an_adapter(make, adapter, changes):
    change(adapter / "adapter_config.json", **changes)
    message = refusal(lambda: load_adapter(make.model(), str(adapter)))
    assert message is None or "--adapter" in message


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0" + b"{" * 16, b"\xff" * 8 + b"{}"])
def test_damaged_adapter_weights_are_a_message(make, adapter, content):
    (adapter / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"--adapter .* does not fit"):
        load_adapter(make.model(), str(adapter))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "7", '{"a": ', '{"model": {"type": "BPE"}}', "[" * 50_000, "{}"])
def test_a_damaged_file_of_a_model_is_a_short_message_or_a_model(folder, file, content):
    (folder / file).write_text(content)
    message = refusal(lambda: load_model_and_tokenizer(str(folder), device="cpu"))
    if message is not None:
        assert "--model_name_or_path" in message or "tokenizer" in message
        assert len(message) <= LONGEST_MESSAGE
        assert printable(message) == message


@pytest.mark.parametrize(
    "changes", [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"vocab_size": -1}, {"dtype": 3}]
)
def test_a_config_of_wrong_values_is_a_message(folder, changes):
    change(folder / "config.json", **changes)
    message = refusal(lambda: load_model_and_tokenizer(str(folder), device="cpu"))
    assert message is None or "--model_name_or_path" in message


def test_weights_of_another_shape_are_a_message(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="cannot be loaded by AutoModelForCausalLM"):
        load_model_and_tokenizer(str(folder), device="cpu")
