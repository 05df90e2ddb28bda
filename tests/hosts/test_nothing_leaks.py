"""What a whole run leaves behind: modes as the umask says, no login, no text of a training row."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from fedbias_plugin.federation import state_store
from fedbias_plugin.redaction import HIDDEN, redacted, redacted_text

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
TOKENS = {
    "HF_TOKEN": "hf_" + "Q7x" * 11 + "Z",
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "P4k" * 11 + "W",
    "WANDB_API_KEY": "0fac" * 10,
    "MY_SERVICE_SECRET": "correct-horse-battery-staple",
}


def modes(folder: Path) -> dict[str, int]:
    """Path below ``folder`` -> permission bits, of every file and folder."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.fixture
def umask():
    """Sets the umask for the length of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("flags", [LORA, ("--num_rounds", "1")], ids=["adapter", "model"])
def test_every_file_of_a_run_has_the_mode_that_the_umask_gives(run_builtin, tmp_path, monkeypatch, umask, mask, flags):
    umask(mask)
    waiting = {}
    keep = state_store.StateStore.keep

    def spy(store, name, state):
        kept = keep(store, name, state)
        waiting.update(modes(store.folder))
        return kept

    monkeypatch.setattr(state_store.StateStore, "keep", spy)
    run_builtin(*flags, "--local_states", "disk", "--save_model_freq", "1")
    found = modes(tmp_path / "run")
    assert {"metrics.jsonl", "run.json", "summary.json", "manifest.json", "probe.json"} <= set(found)
    assert any(name.endswith(".npz") for name in found)
    assert any(name.endswith(".safetensors") for name in found)
    assert any(name.endswith(".safetensors") for name in waiting)
    wrong = {}
    for name, mode in {**found, **{f".local_states/{name}": mode for name, mode in waiting.items()}}.items():
        is_folder = (tmp_path / "run" / name).is_dir()
        if mode != (0o777 if is_folder else 0o666) & ~mask:
            wrong[name] = oct(mode)
    assert wrong == {}


@pytest.fixture
def offline_run(run_builtin, tmp_path, monkeypatch, capfd):
    """A run with made-up logins in the environment, tracked by an offline W&B; all it wrote and printed."""
    wandb = pytest.importorskip("wandb", reason="the wandb package is not installed")
    for name, value in TOKENS.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    run_builtin(*LORA, "--track", "jsonl,wandb", "--wandb_mode", "offline")
    wandb.teardown()
    shown = capfd.readouterr()
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    [recorded] = [content for path, content in files.items() if path.suffix == ".wandb"]
    assert b"bama_lambda" in recorded  # it is no compressed file, in which no text would be found
    return {**files, Path("stdout"): shown.out.encode(), Path("stderr"): shown.err.encode()}


def test_no_login_is_printed_or_written_and_wandb_gets_no_text_of_a_training_row(offline_run, small_data):
    for name, value in TOKENS.items():
        assert [str(path) for path, content in offline_run.items() if value.encode() in content] == [], name
    clean = json.loads((small_data / "alpaca/alpaca_gpt4_data.json").read_text())
    biased = [json.loads(line) for line in (small_data / "biasdpo/BiasDPO.jsonl").read_text().splitlines()]
    texts = {row[key] for row in clean for key in ("instruction", "output")}
    texts |= {row[key] for row in biased for key in ("prompt", "rejected")}
    for path, content in offline_run.items():
        assert [text for text in texts if text.encode() in content] == [], path


def test_the_configuration_of_a_host_is_recorded_without_its_logins():
    config = {
        "use_auth_token": True,
        "hub_token": "hf_short",
        "wandb_key": "abc",
        "openai_api_key": "sk-1",
        "password": "",
        "eos_token": "</s>",
        "bias_batch_tokens": 4096,
        "report_to": {"hf_token": "x", "url": "https://me:pw@example.org/api"},
        "extra": ["--token=hf_" + "a" * 34, ("fine",)],
        "seed": 1,
        "dtype": None,
    }
    assert redacted(config) == config | {
        "hub_token": HIDDEN,
        "wandb_key": HIDDEN,
        "openai_api_key": HIDDEN,
        "report_to": {"hf_token": HIDDEN, "url": "https://example.org/api"},
        "extra": [f"--token={HIDDEN}", ["fine"]],
    }


def test_a_text_is_freed_of_the_logins_in_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", TOKENS["WANDB_API_KEY"])
    monkeypatch.setenv("SHORT_KEY", "abc")
    text = f"401 for key {TOKENS['WANDB_API_KEY']} at abc"
    assert redacted_text(text) == f"401 for key {HIDDEN} at abc"


def test_an_error_that_quotes_a_login_is_printed_without_it(monkeypatch, capsys):
    from fedbias_plugin.errors import UserError
    from fedbias_plugin.logs import print_error

    monkeypatch.setenv("HF_TOKEN", TOKENS["HF_TOKEN"])
    print_error(UserError(f"https://user:pass@hub.example/x refused {TOKENS['HF_TOKEN']}"))
    shown = capsys.readouterr().err
    assert shown == f"fedbias: error: https://hub.example/x refused {HIDDEN}\n"
