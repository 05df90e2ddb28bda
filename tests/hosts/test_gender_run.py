"""A whole run with every gender metric: what each round records, and that compare and report show it."""

from __future__ import annotations

import json
import math

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.models import save_classifier

pytestmark = pytest.mark.skipif(detect_stack() != "current", reason="the built-in host needs the current libraries")
MEASURED = ("occupation_bias", "swapped_prompts", "winobias", "gender_perplexity", "gender_count", "sentiment")


def test_a_run_records_every_gender_metric_and_what_was_not_measured(run_builtin, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)  # then each has a short list of ours
    judge = save_classifier(tmp_path / "judge", ["negative", "neutral", "positive"])
    names = ",".join(("crows_pairs", "stereoset", *MEASURED, "toxicity"))
    flags = ("--use_peft", "--bias_benchmarks", names, "--num_rounds", "1", "--sample_prompts", "8")
    flags += ("--sample_tokens", "6", "--gender_gradient_texts", "2", "--sentiment_classifier", str(judge))
    for output in ("one", "two"):
        records = run_builtin(*flags, *(("--learning_rate", "1e-2") if output == "two" else ()), output=output)
    for record in records:
        blocks = record.global_.metrics
        assert "toxicity" not in blocks
        for name in MEASURED:
            block = blocks[name]
            assert block["ideal"] == (50.0 if name == "winobias" else 0.0)
            assert len(block["ids_hash"]) == 64
            if name != "gender_count" or block["n"]:
                assert math.isfinite(block["value"])
                assert block["n"] > 0
        assert blocks["winobias"]["n"] == 32
        assert blocks["gender_perplexity"]["gradient_texts"] == 2
        assert blocks["gender_perplexity"]["l2_female"] > 0
        assert blocks["sentiment"]["classifier"] == "judge"
        assert 0.0 <= blocks["sentiment"]["female"] <= 1.0
        assert record.global_.bias_score is not None
        assert all(set(row.metrics) == {"crows_pairs", "stereoset"} for row in record.clients.values())
    first, last = records[0].global_.metrics, records[-1].global_.metrics
    assert first["occupation_bias"]["value"] != last["occupation_bias"]["value"]
    assert first["sentiment"]["ids_hash"] == last["sentiment"]["ids_hash"]
    lines = (tmp_path / "two/metrics.jsonl").read_text().splitlines()
    assert "toxicity" not in json.loads(lines[-1])["global"]
    assert (tmp_path / "two/scores/round_001_winobias.npz").is_file()
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    shown = capsys.readouterr().out
    for title in ("occupation bias, nats", "WinoBias score", "swapped prompts, Hellinger", "sentiment gap"):
        assert title in shown
    swapped = next(line for line in shown.split("swapped prompts, Hellinger (")[1].splitlines() if "[" in line)
    low, high = swapped.split("[")[1].split("]")[0].split(", ")
    assert len(low.split(".")[1]) == len(high.split(".")[1]) == 3  # as many decimals as the value
    for run in ("one", "two"):  # a metric without a value in any round has no curve, and the rest is drawn
        path = tmp_path / run / "metrics.jsonl"
        rounds = [json.loads(line) for line in path.read_text().splitlines()]
        for record in rounds:
            if record.get("global", {}).get("gender_count"):
                record["global"]["gender_count"] |= {"value": None, "n": 0, "ci95": None, "signed": None}
        path.write_text("".join(f"{json.dumps(record)}\n" for record in rounds))
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report/report.md").read_text()
    assert "Gender metrics of the global model" in page
    assert "occupation_bias_by_round" in page
    assert "gender_count_by_round" not in page
