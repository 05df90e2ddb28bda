"""``fedbias evaluate`` from the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.saving import base_model, find_adapter


def test_a_model_is_measured_without_training(random_model, small_data, tmp_path, capsys):
    output = tmp_path / "bias.json"
    flags = ["--model_name_or_path", random_model, "--data_dir", small_data, "--output", output]
    assert main(["evaluate", *map(str, flags)]) == 0
    report = json.loads(output.read_text())
    assert report["crows_pairs"]["n"] == 24
    assert set(report["stereoset"]["by_domain"]) == {"profession", "race"}
    assert report["metadata"]["stereoset"]["prefix_token"] == "<s>"
    printed = capsys.readouterr().out
    assert "CrowS-Pairs" in printed
    assert "LMS" in printed


def test_published_predictions_are_scored_without_a_model(small_data, tmp_path):
    data = json.loads((small_data / "stereoset/dev.json").read_text())["data"]["intrasentence"]
    points = {"stereotype": 0.9, "anti-stereotype": 0.5, "unrelated": 0.1}
    scores = [{"id": s["id"], "score": points[s["gold_label"]]} for c in data for s in c["sentences"]]
    (tmp_path / "predictions.json").write_text(json.dumps({"intrasentence": scores, "intersentence": []}))
    flags = ["--stereoset_predictions", tmp_path / "predictions.json", "--data_dir", small_data]
    assert main(["evaluate", *map(str, flags), "--output", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())["stereoset"]
    assert (result["lms"], result["ss"], result["icat"]) == (100.0, 100.0, 0.0)


@pytest.fixture(scope="module")
def run_folder(random_model, small_data, tmp_path_factory):
    """The output folder of a small run with an adapter."""
    output = tmp_path_factory.mktemp("runs") / "lora"
    flags = {"model_name_or_path": random_model, "data_dir": small_data, "output_dir": output}
    small = {"client_samples": 8, "heldout_samples": 2, "num_rounds": 1, "max_steps": 1, "bias_benchmarks": "none"}
    given = [part for name, value in (flags | small).items() for part in (f"--{name}", str(value))]
    assert main(["run", "--use_peft", *given]) == 0
    return output


@pytest.mark.parametrize("folder", [".", "adapter"])
def test_the_output_folder_of_a_run_is_enough(folder, run_folder, random_model, small_data, tmp_path, capsys):
    output = tmp_path / "bias.json"
    flags = ["--adapter", run_folder / folder, "--data_dir", small_data, "--output", output]
    assert main(["evaluate", *map(str, flags)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "base model" in line]
    assert said == [f"base model: {random_model}, as {run_folder / 'run.json'} says"]
    whole = tmp_path / "whole.json"
    flags = ["--model_name_or_path", random_model, "--adapter", run_folder / "adapter", "--data_dir", small_data]
    assert main(["evaluate", *map(str, flags), "--output", str(whole)]) == 0
    assert json.loads(output.read_text())["crows_pairs"] == json.loads(whole.read_text())["crows_pairs"]


def test_an_adapter_that_has_left_its_run_is_put_on_the_base_that_it_names(run_folder, random_model, tmp_path):
    moved = shutil.copytree(run_folder / "adapter", tmp_path / "elsewhere" / "moved")
    assert base_model(str(moved)) == (str(random_model), moved / "adapter_config.json")
    config = json.loads((moved / "adapter_config.json").read_text())
    there = {"config": {"model_name_or_path": "/another/machine/model"}}
    (moved.parent / "run.json").write_text(json.dumps(there))
    assert base_model(str(moved)) == (str(random_model), moved / "adapter_config.json")
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="do not name its base model; give --model_name_or_path"):
        base_model(str(moved))


def test_a_run_that_trained_every_weight_has_a_model_and_no_adapter(tmp_path, random_model):
    shutil.copytree(random_model, tmp_path / "model")
    with pytest.raises(UserError, match=f"and no adapter; give --model_name_or_path {tmp_path / 'model'}"):
        find_adapter(str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "needs --model_name_or_path, --adapter or both, or else --stereoset_predictions"),
        (("--model_name_or_path", "tiny", "--output", "."), "is a folder; give a file in it"),
        (("--model_name_or_path", "tiny", "--output", "no/such/x.json"), "does not exist"),
        (("--model_name_or_path", "tiny", "--seed", "-1"), "--seed must be at least 0"),
        (("--model_name_or_path", "tiny", "--bias_benchmarks", "none"), "leaves nothing to evaluate"),
        (("--model_name_or_path", "tiny", "--adapter", "nowhere"), "holds no adapter_config.json"),
        (("--model_name_or_path", "no/such/model"), "there is no such folder"),
        (("--adapter", "x", "--stereoset_predictions", "y"), "--adapter or both, or else --stereoset_predictions"),
    ],
)
def test_wrong_flags_end_with_code_2_before_anything_is_scored(flags, message, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["evaluate", "--data_dir", "mini", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("made", ["TextCnn", "LlamaForSequenceClassification"])
def test_a_classifier_is_refused_in_one_sentence_that_says_what_can_be_done(made, random_model, tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification

    from fedbias_plugin.tasks.textcnn import TextCnn, TextCnnConfig
    from fedbias_plugin.training.models import load_model, model_outline

    folder = shutil.copytree(random_model, tmp_path / "classifier")
    if made == "TextCnn":
        TextCnn(TextCnnConfig(vocab_size=10, num_labels=3)).save_pretrained(folder)
    else:
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(folder)
    capsys.readouterr()
    assert main(["evaluate", "--data_dir", "mini", "--model_name_or_path", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"fedbias: error: --model_name_or_path {folder} is a classifier ({made}), which tells labels and scores no "
        "texts: give a causal LM, such as the one that it was made of. How often the classifier is right stands in the "
        "folder of its run (fedbias report RUN).\n"
    )
    for load in (load_model, model_outline):
        with pytest.raises(UserError, match=rf"is a classifier \({made}\)"):
            load(str(folder))
