"""Tasks of lm-evaluation-harness as metrics: its own values with its own model, on the bundled model and local data."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Source, metric_class
from fedbias_plugin.metrics.suite import Suite
from fedbias_plugin.registry import active, in_order, load, names
from fedbias_plugin.scoring.plans import PlanCache
from fedbias_plugin.tracking.numbers import metric_names
from tests.metrics.harness_folder import TASKS, write_tasks

SOURCE = Source(lambda kind: Path(kind))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("lm_eval")
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    return found, AutoTokenizer.from_pretrained(TINY_MODEL)


@pytest.fixture(scope="module")
def theirs(folder, model):
    """What the harness says with its own model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from fedbias_plugin.metrics.harness_files import quiet
    from fedbias_plugin.metrics.harness_tasks import BOOTSTRAP

    with quiet():
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        names = [*(name for name in TASKS if name not in ("little_choice", "little_normed")), "little_group"]
        peer = HFLM(pretrained=model[0], tokenizer=model[1], batch_size=8)
        return simple_evaluate(peer, tasks=names, task_manager=manager, bootstrap_iters=BOOTSTRAP)


@pytest.fixture
def scorer(model):
    from fedbias_plugin.scoring.scorer import SentenceScorer

    return SentenceScorer(*model, plans=PlanCache())


def prepared(folder, name, **flags):
    arguments = BiasArguments(bias_benchmarks=f"harness:{folder / name}.yaml", **flags)
    metric = next(one for one in active("metric", arguments) if one.name == f"harness:{name}")
    metric.prepare(SOURCE)
    return metric


@pytest.mark.parametrize("name", [*TASKS, "little_group"])
def test_every_measure_and_standard_error_of_a_task_is_the_harness_s(folder, theirs, scorer, name):
    metric = prepared(folder, name)
    was_training = scorer.model.training
    scores = metric.measure(scorer)
    block = metric.block(metric.result(scores, seed=0))
    found = theirs["results"][name]
    first = "acc" if name == "little_group" else TASKS[name]["metric_list"][0]["metric"]
    kinds = {key.split(",")[0]: value for key, value in found.items() if "," in key}
    ours = {first: block["value"], f"{first}_stderr": block["stderr"], **block}
    for measure, value in kinds.items():
        expected = None if value == "N/A" else pytest.approx(value, abs=1e-4, rel=1e-4)
        assert ours[measure] == expected, measure
    assert block["n"] == (24 if name == "little_group" else 12)
    assert block["measure"] == first
    assert block["higher_is_better"] is (first != "word_perplexity")
    if block["stderr"] is not None:
        assert block["ci95"] == pytest.approx([block["value"] + s * 1.96 * block["stderr"] for s in (-1, 1)], abs=1e-4)
    assert f"{first} of {name} version" in block["definition"]
    assert json.loads(json.dumps(block)) == block
    assert scorer.model.training == was_training
    assert metric_class(metric.name).line(block).startswith(f"{name} {first} ")
    assert next(iter(metric_class(metric.name).rows(block)))[0] == f"{name} (harness)"
    parts = metric_class(metric.name).categories(block)
    if name == "little_group":
        assert {task: part["value"] for task, part in parts.items()} == {
            task: pytest.approx(theirs["results"][task]["acc,none"]) for task in ("little_choice", "little_normed")
        }
    else:
        assert (block["shots"], block["task_version"]) == (2 if name == "little_normed" else 0, "1.5")


def test_log_likelihoods_and_greedy_answers_are_those_of_the_harness_s_model_also_where_texts_are_cut(model, scorer):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from fedbias_plugin.metrics.harness_files import quiet
    from fedbias_plugin.scoring.harness_model import HarnessModel, own_tokenizer

    # Without a period: lm-eval 0.4.13 mistakes windows of equal tokens for one another.
    long = " ".join(f"The baker of house {number} was kind." for number in range(250))
    written = HFLM(pretrained=model[0], tokenizer=own_tokenizer(model[1]), batch_size=4)
    pairs = [("", "The nurse"), ("The nurse", ", and"), (long, " baker"), ("The pilot ", "is loud"), ("a b", " c")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    with quiet():
        ours = HarnessModel.of(scorer, own_tokenizer(model[1]), {})
        expected, found = written.loglikelihood(requests), ours.loglikelihood(requests)
        texts = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate([long, "Calm."])]
        rolling = written.loglikelihood_rolling(texts), ours.loglikelihood_rolling(texts)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert [is_greedy for _, is_greedy in found][:2] == [False, True]
    assert rolling[1] == pytest.approx(rolling[0], rel=1e-5, abs=1e-4)
    with pytest.raises(UserError, match=r"'a b': 0 tokens to score; there must be 1 to 1024"):
        ours._loglikelihood_tokens([(("a", " b"), [1, 2], [])])


def test_clients_are_measured_on_their_share_and_the_headline_is_of_the_others(folder, scorer):
    metric = prepared(folder, "little_choice", harness_probe_fraction=0.25)
    suite = Suite([metric], seed=3)
    of_client, whole = suite.assess(scorer).metrics[metric.name], suite.evaluate(scorer)
    block = whole.metrics[metric.name]
    assert (of_client["n"], block["n"], block["items"], block["full"]["n"]) == (3, 9, "report", 12)
    values = whole.item_scores[metric.name].values
    report = [values[index] for index in suite.splits[metric.name][1]]
    assert block["value"] == pytest.approx(sum(report) / 9)
    assert of_client["value"] == block["probe"]["value"]
    assert of_client["ids_hash"] != block["ids_hash"]
    outcomes = type(metric).outcomes({"ids": metric.ids, "values": values})
    assert outcomes[0].mean() == pytest.approx(block["full"]["value"])
    assert suite.probe_record()[metric.name]["items"] == 12


def test_shots_and_documents_are_as_the_flags_say_and_change_what_comparisons_go_by(folder):
    metric = prepared(folder, "little_choice", harness_shots=1, harness_limit=5)
    prompt = metric.items[0].instances[0].args[0]
    assert (len(metric.ids), prompt.count("Q: "), metric.text_count) == (5, 2, 20)
    assert metric.sha256 != prepared(folder, "little_choice", harness_limit=5).sha256
    assert next(iter(metric.texts()))[0] == "little_choice/0"


def test_the_harness_s_command_knows_our_model_and_an_adapter_on_it(folder, theirs, model, tmp_path, monkeypatch):
    import lm_eval.__main__
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from peft import LoraConfig, PeftModel, get_peft_model

    from fedbias_plugin.harness import main
    from fedbias_plugin.metrics.harness_files import quiet

    found = {}

    def command() -> None:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        for name, adapter in (("plain", ""), ("tuned", f",peft={tmp_path}")):
            given = f"pretrained={TINY_MODEL},dtype=float32,batch_tokens=512{adapter}"
            said = simple_evaluate(
                "fedbias", model_args=given, tasks=["little_rolling"], task_manager=manager, device="cpu"
            )
            found[name] = said["results"]["little_rolling"]["bits_per_byte,none"]

    base = copy.deepcopy(model[0])
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path)
    assert isinstance(tuned, PeftModel)
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", command)
    with quiet():
        main()
    assert found["plain"] == pytest.approx(theirs["results"]["little_rolling"]["bits_per_byte,none"], abs=1e-4)
    assert abs(found["tuned"] - found["plain"]) > 1e-3


def test_what_cannot_be_a_task_is_said_in_a_sentence(folder, monkeypatch):
    with pytest.raises(UserError, match="there is no such file"):
        load("metric", "harness:missing.yaml")().prepare(SOURCE)
    with pytest.raises(UserError, match="a task of lm-evaluation-harness, or the path of a YAML file"):
        BiasArguments(bias_benchmarks="harness:some/where")
    (folder / "bare.yaml").write_text("group: bare\ntask: [little_choice, little_rolling]\n")
    with pytest.raises(UserError, match=r"a group without aggregate_metric_list.*harness:little_choice"):
        load("metric", f"harness:{folder}/bare.yaml")().prepare(SOURCE)
    text = (folder / "little_choice.yaml").read_text().replace("test.jsonl", "nowhere.jsonl")
    (folder / "lost.yaml").write_text(text)
    with pytest.raises(UserError, match=r"its data cannot be loaded .*dataset_path: json"):
        load("metric", f"harness:{folder}/lost.yaml")().prepare(SOURCE)
    (folder / "odd.yaml").write_text("task: odd\noutput_type: guess\n")
    with pytest.raises(UserError, match=r"the task cannot be used \(ValueError"):
        load("metric", f"harness:{folder}/odd.yaml")().prepare(SOURCE)
    with pytest.raises(UserError, match="would have one name, harness:lost; rename"):
        BiasArguments(bias_benchmarks=f"harness:{folder}/lost.yaml,harness:lost")


def test_a_name_is_found_in_the_harness_s_files_without_reading_its_whole_list():
    pytest.importorskip("lm_eval")
    from fedbias_plugin.metrics.harness_files import _file_of

    assert [path and path.stem for path in map(_file_of, ("bbq", "mmlu_stem", "social_bias"))] == [
        "bbq_multiple_choice",
        "_mmlu_stem",
        None,
    ]


def test_without_the_harness_the_flag_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lm-eval>="):
        load("metric", "harness:arc_easy")().prepare(SOURCE)


def test_a_task_has_its_name_in_records_and_a_family_no_value_of_its_own():
    assert load("metric", "harness:here/my_task.yaml").name == "harness:my_task"
    assert metric_class("harness:my_task/acc_norm").title == "my_task (harness): acc norm"
    assert metric_class("harness:my_task").of_clients is False
    assert in_order("metric", ["harness:b", "stereoset", "nobody"]) == ["stereoset", "harness:b", "nobody"]
    assert "harness" in names("metric")
    assert "harness" not in metric_names()
    with pytest.raises(UserError, match=r"choose one of .*harness:TASK"):
        BiasArguments(bias_benchmarks="harness")
    with pytest.raises(UserError, match="is unknown"):
        BiasArguments(bias_benchmarks="crows_pairs:x")
