"""``fedbias evaluate`` from the command line."""

from __future__ import annotations

import json

import pytest

from fedbias_plugin.cli.main import main


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "needs --model_name_or_path or --stereoset_predictions"),
        (("--model_name_or_path", "tiny", "--output", "."), "is a folder; give a file in it"),
        (("--model_name_or_path", "tiny", "--output", "no/such/x.json"), "does not exist"),
        (("--model_name_or_path", "tiny", "--seed", "-1"), "--seed must be at least 0"),
        (("--model_name_or_path", "tiny", "--bias_benchmarks", "none"), "leaves nothing to evaluate"),
        (("--model_name_or_path", "tiny", "--adapter", "nowhere"), "holds no adapter_config.json"),
        (("--model_name_or_path", "no/such/model"), "there is no such folder"),
        (("--adapter", "x", "--stereoset_predictions", "y"), "--adapter needs the --model_name_or_path"),
    ],
)
def test_wrong_flags_end_with_code_2_before_anything_is_scored(flags, message, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["evaluate", "--data_dir", "mini", *flags]) == 2
    assert message in capsys.readouterr().err
