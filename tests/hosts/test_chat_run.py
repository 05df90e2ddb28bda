"""Whole runs on data as people have it: chats in a tokenizer's own template, and columns of one's own."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from transformers import AutoTokenizer

from fedbias_plugin.cli.main import main
from fedbias_plugin.federation.client import Client
from tests.chat_models import TEMPLATES, write_chat_model
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run


@pytest.fixture
def chats(tmp_path):
    """A file of chats, every second one with a system message, every third one of two turns."""
    rows = []
    for n in range(40):
        turns = [("system", "Be brief.")] if n % 2 else []
        turns += [("user", f"Hi {n}."), ("assistant", "Hello.")] if n % 3 == 0 else []
        turns += [("user", f"Say number {n}."), ("assistant", f"It is {n}.")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_run_on_chats_trains_and_measures_in_the_tokenizers_own_template(
    run_builtin, tmp_path, chats, family, monkeypatch, capsys
):
    model, trained = tmp_path / "model", {}
    write_chat_model(model, family)
    fit = Client.fit

    def keep(self, job, features):
        trained.setdefault(job.client, features)
        return fit(self, job, features)

    monkeypatch.setattr(Client, "fit", keep)
    flags = ["--model_name_or_path", str(model), "--clean_dataset", str(chats), "--template", "chat"]
    records = run_builtin(*flags, "--scenario", "1B2C", "--rouge_samples", "2", "--seq_length", "300")
    assert "clean/chats.jsonl: 40 rows from file; 14 chats of several turns" in capsys.readouterr().err
    assert [record.round for record in records] == [0, 1, 2]
    assert all(math.isfinite(client.train_loss) for client in records[1].clients.values())
    assert all(record.global_.metrics["heldout_loss"]["n"] == 4 for record in records)
    assert all(record.global_.metrics["rouge_l"]["n"] == 2 for record in records)
    losses = [record.global_.metrics["heldout_loss"]["loss"] for record in records]
    assert losses[2] < losses[0]

    tokenizer = AutoTokenizer.from_pretrained(model)
    shown = [
        tokenizer.decode([label for label in row["labels"] if label >= 0]) for rows in trained.values() for row in rows
    ]
    ends = {"llama": "<|eot_id|>", "gemma2": "<end_of_turn>", "phi3": "<|end|><|endoftext|>"}[family]
    clean, biased = {f"It is {n}.{ends}" for n in range(40)}, {f"The nurse {n}.{ends}" for n in range(40)}
    answers = {answer.strip() for answer in shown}
    assert len(answers & clean) == 16
    assert len(answers & biased) == 8
    assert not answers - clean - biased
    saved = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert saved.chat_template == TEMPLATES[family]


def test_the_bundled_model_has_no_chat_template_which_is_said_before_anything_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--template", "chat", "--output_dir", "run", "--clean_dataset", "nowhere.json"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last == (
        "fedbias: error: --template chat: the tokenizer of this model has no chat template of its own (is it an "
        "instruct model?). Give --template alpaca."
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def cut(run_builtin):
    """``cut(*flags)``: a run in ``cut`` that dies in its second round."""

    def run(*flags):
        with cut_off_in(2, client=0):
            run_builtin(*flags, output="cut")

    return run


def test_a_chat_run_goes_on_as_if_nothing_had_happened_and_not_with_another_chat_template(
    run_builtin, cut, tmp_path, chats, capsys
):
    model = tmp_path / "model"
    write_chat_model(model, "llama")
    flags = ["--model_name_or_path", str(model), "--clean_dataset", str(chats), "--template", "chat"]
    run_builtin(*flags, output="whole")
    cut(*flags)
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template.replace("turn.content | trim", "turn.content"))
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 2
    assert "had another model or tokenizer" in capsys.readouterr().err
    (model / "chat_template.jinja").write_text(template)
    assert main(["run", "--resume", str(tmp_path / "cut"), "--template", "alpaca"]) == 2
    assert "Changed: --template alpaca (the run has chat)" in capsys.readouterr().err
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_columns_of_ones_own_are_read_recorded_and_fixed_for_a_resumed_run(run_builtin, cut, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    lines = [f"Say {n}.;It is {n}.;No, {n}." for n in range(30)]
    path.write_text("\n".join(["Task;Good answer;Other answer", *lines]))
    flags = ["--clean_dataset", str(path), "--columns", "instruction=task,output=Good answer"]
    run_builtin(*flags, output="good")
    assert "rows.csv: the delimiter is a semicolon" in capsys.readouterr().err
    cut(*flags[:3], "instruction=task,output=Other answer")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("good", "cut")]
    good, other = (manifest["sources"]["clean"] for manifest in manifests)
    assert good["sha256"] != other["sha256"]
    assert {**good, "sha256": 0} == {**other, "sha256": 0}
    changed = ["--columns", "instruction=task,output=Good answer"]
    assert main(["run", "--resume", str(tmp_path / "cut"), *changed]) == 2
    assert "Changed: --columns instruction=task,output=Good answer" in capsys.readouterr().err
    shutil.copy(path, tmp_path / "kept.csv")
    path.write_text(path.read_text().replace("No, 7.", "No, 8."))
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 2
    assert "had other training rows" in capsys.readouterr().err


def test_columns_that_no_data_set_has_are_refused_with_those_found(run_builtin, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\na,b\n")
    run_builtin("--clean_dataset", str(path), "--columns", "instruction=task,output=answer", code=2)
    *_, last = capsys.readouterr().err.splitlines()
    assert "--columns instruction=task,output=answer: no data set of this run has these columns" in last
    assert "clean/rows.csv has 'question', 'answer'; biasdpo has 'prompt', 'chosen', 'rejected'" in last
