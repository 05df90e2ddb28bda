"""The client bias score and where a result comes from."""

import hashlib
import json
import subprocess
import sys

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.crows_pairs import CrowsPairs
from fedbias_plugin.evaluation.results import ResultMetadata, bias_score, model_identity, package_versions
from fedbias_plugin.evaluation.scorer import SentenceScorer

ROWS = "sent_more,sent_less,stereo_antistereo,bias_type\nThe old are slow.,The young are slow.,stereo,age\n"


def test_the_bias_score_is_equation_1():
    assert bias_score(0.5, 60.0, 46.0) == 0.5 * (10 + 4)
    assert bias_score(1.0, 41.5, 63.25) == pytest.approx(8.5 + 13.25)
    assert bias_score(0.0, 90.0, 90.0) == 0.0


def test_a_benchmark_that_was_not_measured_has_no_term():
    assert bias_score(0.5, None, 58.0) == 4.0
    assert bias_score(0.5, 58.0, None) == 4.0
    with pytest.raises(ValueError, match="or both"):
        bias_score(0.5, None, None)


@pytest.mark.parametrize("alpha", [-0.01, 1.01])
def test_alpha_outside_0_and_1_is_refused(alpha):
    with pytest.raises(UserError, match="between 0 and 1"):
        bias_score(alpha, 50.0, 50.0)


def test_metadata_name_file_items_model_prefix_and_versions(tmp_path, build_model, eos_tokenizer):
    path = tmp_path / "pairs.csv"
    path.write_text(ROWS, encoding="utf-8")
    benchmark, model = CrowsPairs.load(path), build_model()
    scorer = SentenceScorer(model, eos_tokenizer)
    result = benchmark.result(benchmark.score(scorer, "sum"), seed=5)
    metadata = ResultMetadata.build(benchmark, result, seed=5, scorer=scorer, adapter="my/adapter").to_json()
    assert metadata["file_sha256"] == hashlib.sha256(ROWS.encode()).hexdigest()
    assert metadata["ids_hash"] == hashlib.sha256(b"0").hexdigest()
    assert (metadata["items"], metadata["reduction"], metadata["tie_rate"], metadata["seed"]) == (1, "sum", 0.0, 5)
    assert (metadata["prefix_token"], metadata["prefix_id"], metadata["adapter"]) == ("</s>", 1, "my/adapter")
    assert metadata["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
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


def test_versions_are_those_of_the_packages():
    import numpy

    assert package_versions()["numpy"] == numpy.__version__


def test_results_statistics_and_benchmarks_are_imported_without_torch():
    code = (
        "import sys; from fedbias_plugin.evaluation import results, statistics, probe, crows_pairs, stereoset; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
