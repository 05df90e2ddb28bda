"""The client bias score and where a result comes from."""

import hashlib
import json
import subprocess
import sys

import pytest

from fedbias_plugin.metrics.base import delta
from fedbias_plugin.metrics.bias_score import bias_score
from fedbias_plugin.metrics.crows_pairs import CrowsPairs
from fedbias_plugin.metrics.results import ResultMetadata, model_identity, package_versions
from fedbias_plugin.registry import load
from fedbias_plugin.scoring.scorer import SentenceScorer
from fedbias_plugin.training.fingerprint import tokenizer_fingerprints

ROWS = "sent_more,sent_less,stereo_antistereo,bias_type\nThe old are slow.,The young are slow.,stereo,age\n"


def test_the_bias_score_is_equation_1():
    assert [delta({"value": score, "ideal": 50.0}) for score in (60.0, 46.0, 41.5)] == [10.0, 4.0, 8.5]
    assert bias_score(0.5, [10.0, 4.0]) == 0.5 * (10 + 4)
    assert bias_score(1.0, [8.5, 13.25]) == pytest.approx(8.5 + 13.25)
    assert bias_score(0.0, [40.0, 40.0]) == 0.0


def test_a_benchmark_that_was_not_measured_has_no_term():
    assert bias_score(0.5, [8.0]) == 4.0
    with pytest.raises(ValueError, match="or both"):
        bias_score(0.5, [])


def test_metadata_name_file_items_model_prefix_and_versions(tmp_path, build_model, eos_tokenizer):
    path = tmp_path / "pairs.csv"
    path.write_text(ROWS, encoding="utf-8")
    benchmark, model = CrowsPairs.load(path), build_model()
    scorer = SentenceScorer(model, eos_tokenizer)
    result = benchmark.result(benchmark.measure(scorer), seed=5)
    metadata = ResultMetadata.build(benchmark, result, seed=5, scorer=scorer, adapter="my/adapter").to_json()
    assert metadata["file_sha256"] == hashlib.sha256(ROWS.encode()).hexdigest()
    assert metadata["ids_hash"] == hashlib.sha256(b"0").hexdigest()
    assert (metadata["items"], metadata["reduction"], metadata["tie_rate"], metadata["seed"]) == (1, "sum", 0.0, 5)
    assert (metadata["prefix_token"], metadata["prefix_id"], metadata["adapter"]) == ("</s>", 1, "my/adapter")
    assert metadata["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert metadata["tokenizer"] == tokenizer_fingerprints(eos_tokenizer)
    assert {"python", "torch", "transformers", "numpy"} <= metadata["versions"].keys()
    json.dumps(metadata, allow_nan=False)


def test_the_identity_of_an_adapted_model_names_its_adapter(build_model):
    import peft

    model = peft.get_peft_model(build_model(), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    identity = model_identity(model)
    assert identity["class"] == "LlamaForCausalLM"
    assert identity["dtype"] == "float32"
    assert identity["adapters"] == [{"name": "default", "method": "LORA", "r": 4}]
    assert model_identity(build_model())["adapters"] == []


def test_the_fingerprint_is_of_the_weights_without_the_adapter(build_model):
    import peft
    import torch

    plain = model_identity(build_model())["fingerprint"]
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapted = peft.get_peft_model(build_model(), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(1.0)
    assert model_identity(adapted)["fingerprint"] == plain
    other = build_model()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    assert model_identity(other)["fingerprint"] != plain


def test_versions_are_those_of_the_packages():
    import numpy

    assert package_versions()["numpy"] == numpy.__version__


def test_results_statistics_and_benchmarks_are_imported_without_torch():
    code = (
        "import sys; from fedbias_plugin.metrics import results, statistics, probe, crows_pairs, stereoset; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_line_of_a_log_has_interval_and_n_of_every_number():
    loss = {"value": 0.8307, "loss": 0.8307, "ci95": [0.76, 0.9], "n": 120}
    assert load("metric", "heldout_loss").line(loss) == "held-out loss 0.8307 [0.76, 0.90] (120 rows)"
    rouge = {"value": 31.4, "f1": 31.4, "ci95": [28.0, 34.8], "n": 20}
    assert load("metric", "rouge_l").line(rouge) == "ROUGE-L 31.4 [28.0, 34.8] (20 responses)"
