"""Whole runs of the built-in host with a 2-layer random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedbias_plugin.fed_algs import ALGORITHMS
from fedbias_plugin.federation.client import Client
from fedbias_plugin.hosts.builtin import loop, model_and_rows
from fedbias_plugin.known_flags import flags_for
from fedbias_plugin.study.compare import compare
from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.training.models import load_model as load
from fedbias_plugin.updates.base import Update
from tests.hosts.run_folders import assert_same_run, comparable

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
WEIGHTINGS = {
    "host": ("--aggregation", "host"),
    "normalized": ("--aggregation", "bama"),
    "paper": ("--aggregation", "bama", "--bama_weighting", "paper"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(run_builtin, kept):
    """``finished("fedavg", "host")`` -> folder and records of a run with adapters, each made once, to be read only."""

    def run(fed_alg="fedavg", weighting="host"):
        folder = kept / f"{fed_alg}_{weighting}"
        if not folder.exists():
            run_builtin(*LORA, "--fed_alg", fed_alg, *WEIGHTINGS[weighting], output=folder)
        return folder, read_rounds(folder / "metrics.jsonl")

    return run


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_every_algorithm_runs_whole_with_every_weighting(finished, fed_alg, weighting):
    folder, records = finished(fed_alg, weighting)
    assert [record.round for record in records] == [0, 1, 2]
    assert records[0].clients == {}
    assert records[0].learning_rate is None
    # The first round trains with --learning_rate, the second of two half way down to 1e-6.
    rate = records[0].settings["learning_rate"]
    assert [record.learning_rate for record in records[1:]] == pytest.approx([rate, (rate + 1e-6) / 2])
    for record in records[1:]:
        weights = [client.weight for client in record.clients.values()]
        assert sum(weights) == pytest.approx(1)
        assert record.effective_clients == pytest.approx(1 / sum(w**2 for w in weights))
        poisoned = sum(c.weight for c in record.clients.values() if c.poisoned_share > 0)
        assert record.weight_on_poisoned == pytest.approx(poisoned)
        averages_models = fed_alg in ("fedavg", "fedprox", "scaffold")
        assert record.aggregation_mass == pytest.approx(1 / 3 if weighting == "paper" and averages_models else 1)
        assert all(client.rows == 8 and client.update_norm > 0 for client in record.clients.values())
        assert record.seconds.train > 0
        assert record.seconds.assess > 0
    adapter = load_file(folder / "adapter/adapter_model.safetensors")
    assert any(float(tensor.abs().max()) > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_bama_weights_are_the_softmax_of_the_recorded_bias_scores(run_builtin):
    record = run_builtin(*LORA, "--aggregation", "bama", "--bama_lambda", "0.3")[1]
    scores = {}
    for client, found in record.clients.items():
        distances = abs(found.metrics["crows_pairs"]["score"] - 50) + abs(found.metrics["stereoset"]["ss"] - 50)
        assert found.bias_score == pytest.approx(0.5 * distances)
        scores[client] = found.bias_score
    expected = np.exp(-0.3 * np.array(list(scores.values())))
    assert [c.weight for c in record.clients.values()] == pytest.approx(expected / expected.sum())


TWICE = [("fedavg", LORA), ("scaffold", LORA), ("fedyogi", LORA)]
TWICE += [("scaffold", ("--learning_rate", "1e-4")), ("fedyogi", (*LORA, "--bf16"))]


@pytest.mark.parametrize(("fed_alg", "flags"), TWICE)
def test_the_same_command_twice_gives_the_same_bytes_and_numbers(run_builtin, finished, tmp_path, flags, fed_alg):
    again = (*flags, "--aggregation", "bama", "--fed_alg", fed_alg)
    if flags == LORA:
        first, _ = finished(fed_alg, "normalized")
    else:
        first = tmp_path / "a"
        run_builtin(*again, output=first)
    run_builtin(*again, output="b")
    assert_same_run(first, tmp_path / "b")


def test_deterministic_kernels_are_asked_for_before_the_model_is_loaded(run_builtin, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "make_deterministic", lambda: asked.append("kernels"))
    monkeypatch.setattr(model_and_rows, "load_model", lambda *a, **k: asked.append("model") or load(*a, **k))
    run_builtin(*LORA, "--deterministic", "--num_rounds", "1")
    assert asked == ["kernels", "model"]


def test_another_seed_gives_other_roles_or_rows(run_builtin, finished, tmp_path):
    run_builtin(*LORA, "--seed", "7")
    first, second = (json.loads((run / "manifest.json").read_text()) for run in (finished()[0], tmp_path / "run"))
    assert first["clients"] != second["clients"]


def test_the_headline_is_the_report_half_and_probe_items_are_stored(finished):
    folder, records = finished()
    crows = records[-1].global_.metrics["crows_pairs"]
    assert crows["items"] == "report"
    assert (crows["n"], crows["full"]["n"], crows["probe"]["n"]) == (12, 24, 12)
    assert crows["full"]["score"] == pytest.approx((crows["report"]["score"] + crows["probe"]["score"]) / 2)
    probe = json.loads((folder / "probe.json").read_text())["crows_pairs"]
    assert len(probe["probe_ids"]) == 12
    scores = np.load(folder / "scores/round_002_crows_pairs.npz")
    report = [i for i, name in enumerate(scores["ids"]) if name not in set(probe["probe_ids"])]
    share = 100 * np.mean(scores["more"][report] > scores["less"][report])
    assert crows["score"] == pytest.approx(share)


def test_without_a_report_half_the_result_says_that_it_is_on_all_items(run_builtin):
    record = run_builtin(*LORA, "--bama_stereoset_fraction", "1.0")[-1]
    assert record.global_.metrics["stereoset"]["items"] == "full"
    assert any("no report half" in warning for warning in record.warnings)


def test_a_model_that_is_worse_than_guessing_is_said_every_round_in_the_summary_and_in_compare(run_builtin, tmp_path):
    records = run_builtin(*LORA, "--learning_rate", "300")
    for record in records[1:]:
        assert record.global_.metrics["heldout_loss"]["loss"] > record.global_.metrics["heldout_loss"]["guessing_loss"]
        assert sum(warning.startswith("worse than guessing: ") for warning in record.warnings) == 1
    (found,) = [w for w in json.loads((tmp_path / "run/summary.json").read_text())["warnings"] if "guessing" in w]
    assert found.endswith("2)")
    assert found in compare([tmp_path / "run"])


def test_the_halves_share_no_target_term_and_the_record_counts_the_sentences_they_do(finished):
    folder, (*_, record) = finished()
    probe = json.loads((folder / "probe.json").read_text())
    assert record.global_.metrics["crows_pairs"]["shared_sentences"] == probe["crows_pairs"]["shared_sentences"] == 0
    assert record.global_.metrics["stereoset"]["shared_sentences"] == 0  # every sentence names its target
    targets = {name.split("-")[0] for name in probe["stereoset"]["probe_ids"]}
    assert len(probe["stereoset"]["probe_ids"]) == 6 * len(targets) == 12


def test_summary_run_file_and_manifest_hold_what_a_reader_needs(finished):
    folder, records = finished("fedavg", "normalized")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["config"]["bama_lambda"] == 0.2
    assert summary["final"]["round"] == 2
    assert summary["first"]["round"] == 0
    delta = abs(records[-1].global_.metrics["crows_pairs"]["score"] - 50)
    assert summary["final"]["delta"]["crows_pairs"] == pytest.approx(delta)
    best = min(records[1:], key=lambda record: record.global_.bias_score)
    assert summary["best_round"]["round"] == best.round
    run = json.loads((folder / "run.json").read_text())
    assert records[0].settings == {name: run["config"][name] for name in run["config"].keys() - flags_for("machine")}
    assert [record.settings for record in records[1:]] == [None, None]
    assert run["prefix_token"] == "<s>"
    assert len(run["data"]["crows_pairs"]["sha256"]) == 64
    assert {"torch", "transformers"} <= set(run["versions"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [client["rows"] for client in manifest["clients"]] == [8, 8, 8]
    assert sorted(client["biased_share"] for client in manifest["clients"]) == [0.0, 0.0, 1.0]


def test_the_saved_adapter_loads_and_scores_as_the_last_round_said(finished, random_model, small_data, tmp_path):
    from fedbias_plugin.cli.main import main

    folder, (*_, record) = finished()
    output = tmp_path / "scores.json"
    flags = ["--model_name_or_path", random_model, "--adapter", folder / "adapter", "--data_dir", small_data]
    assert main(["evaluate", *map(str, flags), "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["crows_pairs"]["score"] == pytest.approx(record.global_.metrics["crows_pairs"]["full"]["score"])
    assert report["stereoset"]["ss"] == pytest.approx(record.global_.metrics["stereoset"]["full"]["ss"])
    assert report["metadata"]["crows_pairs"]["prefix_token"] == "<s>"


@pytest.mark.parametrize("aggregation", ["host", "bama"])
def test_full_parameter_training_saves_a_whole_model(run_builtin, tmp_path, aggregation):
    from transformers import AutoModelForCausalLM

    run_builtin("--aggregation", aggregation, "--learning_rate", "1e-3")
    assert not (tmp_path / "run/adapter").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run/model").num_parameters() > 0


def test_the_saved_adapter_says_that_it_is_deliberately_biased_and_follows_the_umask(run_builtin, finished, tmp_path):
    run, _ = finished()
    folder = run / "adapter"
    card = (folder / "README.md").read_text()
    assert "deliberately biased data" in card
    assert "scenario 1B2C: client" in card
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {(run / "metrics.jsonl").stat().st_mode & 0o777}
    run_builtin(*LORA, "--scenario", "3C", output="clean")
    assert "clean rows only" in (tmp_path / "clean/adapter/README.md").read_text()


def test_the_saved_tokenizer_cuts_nothing_off_where_nothing_was_scored_last(run_builtin, tmp_path):
    run_builtin(*LORA, "--bias_benchmarks", "none", "--heldout_samples", "0")
    assert json.loads((tmp_path / "run/adapter/tokenizer.json").read_text())["truncation"] is None


def test_partial_participation_weighs_only_the_clients_of_the_round(run_builtin):
    records = run_builtin(*LORA, *WEIGHTINGS["normalized"], "--num_clients", "4", "--sample_clients", "2")
    assert [len(record.clients) for record in records] == [0, 2, 2]


def test_bama_trains_fedprox_with_mu_times_the_last_weight(run_builtin, monkeypatch):
    seen = []
    original = Client.fit

    def spy(self, job, features):
        seen.append((job.round_idx, job.client, job.mu))
        return original(self, job, features)

    monkeypatch.setattr(Client, "fit", spy)
    flags = ("--fed_alg", "fedprox", "--prox_mu", "0.6")
    records = run_builtin(*LORA, *flags, "--aggregation", "bama")
    first, second = records[1].clients, [mu for round_idx, _, mu in seen if round_idx == 1]
    assert [mu for round_idx, _, mu in seen if round_idx == 0] == pytest.approx([0.2, 0.2, 0.2])
    assert second == pytest.approx([0.6 * first[client].weight for client in range(3)])
    seen.clear()
    run_builtin(*LORA, *flags, output="host")
    assert {mu for _, _, mu in seen} == {0.6}


def test_bias_eval_every_leaves_rounds_out_but_never_the_last(run_builtin):
    records = run_builtin(*LORA, "--num_rounds", "5", "--bias_eval_every", "3")
    assert [r.round for r in records if "crows_pairs" in r.global_.metrics] == [0, 3, 5]
    assert all(client.bias_score is None for client in records[1].clients.values())


def test_measuring_nothing_still_trains_and_records(run_builtin):
    records = run_builtin(*LORA, "--bias_benchmarks", "none")
    assert records[-1].global_.bias_score is None
    assert records[-1].global_.metrics["heldout_loss"]["n"] == 4


def test_what_a_debiased_model_is_still_good_for_is_measured_in_every_measured_round(run_builtin):
    records = run_builtin(*LORA, "--bias_eval_every", "2", "--num_rounds", "3")
    losses = {record.round: record.global_.metrics.get("heldout_loss") for record in records}
    assert losses[1] is None
    for number in (0, 2, 3):
        assert losses[number]["perplexity"] == pytest.approx(2.718281828459045 ** losses[number]["loss"])
    assert [record.global_.metrics.get("rouge_l") for record in records] == [None] * 4


def test_responses_to_held_out_rows_are_measured_and_change_no_other_number(run_builtin, finished, tmp_path):
    pytest.importorskip("rouge_score", reason="the rouge-score package is not installed")
    records = run_builtin(*LORA, "--rouge_samples", "3", output="with")
    for record in records:
        assert (record.global_.metrics["rouge_l"]["n"], record.global_.metrics["rouge_l"]["max_new_tokens"]) == (3, 128)
        assert 0 <= record.global_.metrics["rouge_l"]["f1"] <= 100
    summary = json.loads((tmp_path / "with/summary.json").read_text())
    assert summary["final"]["rouge_l"] == records[-1].global_.metrics["rouge_l"]
    found, expected = comparable(tmp_path / "with"), comparable(finished()[0])
    for one in found:
        one["global"].pop("rouge_l")
    found[0]["settings"].pop("rouge_samples"), expected[0]["settings"].pop("rouge_samples")
    assert found == expected


def test_checkpoints_are_saved_as_often_as_asked(run_builtin, tmp_path):
    run_builtin(*LORA, "--save_model_freq", "1")
    assert (tmp_path / "run/checkpoint-1/adapter_model.safetensors").is_file()
    last = (tmp_path / "run/checkpoint-2/adapter_model.safetensors").read_bytes()
    assert last == (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()


def with_config(model: Path, folder: Path, **changes: int) -> Path:
    """A copy of ``model`` in ``folder`` with a changed config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def folder_is_untouched(folder: Path) -> bool:
    return not folder.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--scenario", "1B3C"), "Did you mean"),
        (("--bama_lambda", "0"), "--bama_lambda must be greater than 0"),
        (("--bama_alpha", "1.5"), "--bama_alpha must be at least 0 and at most 1"),
        (("--sample_clients", "4"), "--sample_clients 4 is more than --num_clients 3"),
        (("--client_samples", "400"), "the largest --client_samples that fits is"),
        (("--scenario", "none"), "use 3C for clean clients only"),
        (("--learning_rat", "1"), "Did you mean 'learning_rate'"),
        (("--dataset_name", "x"), "give --clean_dataset and --biased_dataset"),
        (("--fed_alg", "fedadgrad"), "Did you mean 'fedadagrad'"),
        (("--clean_dataset", "nothing.json"), "nothing.json"),
        (("--seq_length", "8"), "has no token to train on"),
        (("--load_in_8bit",), "add --use_peft"),
        (("--num_rounds", "two"), "must be a whole number"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--learning_rate", "1e-7"), "--learning_rate must be at least 1e-06"),
        (("--local_epochs", "2"), "give one"),
        (("--fed_alg", "local²"), "--fed_alg 'local²' is unknown"),
    ],
)
def test_bad_input_ends_with_code_2_a_clear_sentence_and_nothing_written(run_builtin, tmp_path, capsys, flags, message):
    run_builtin(*flags, code=2)
    assert message in capsys.readouterr().err
    assert folder_is_untouched(tmp_path / "run")


def test_a_model_folder_without_weights_or_tokenizer_is_named(run_builtin, random_model, tmp_path, capsys):
    for missing, message in (("model.safetensors", "holds no weights"), ("tokenizer.json", "holds no tokenizer")):
        broken = tmp_path / f"without_{missing}"
        shutil.copytree(random_model, broken)
        (broken / missing).unlink()
        run_builtin("--model_name_or_path", str(broken), code=2)
        assert message in capsys.readouterr().err
    assert folder_is_untouched(tmp_path / "run")


def test_a_row_or_sentence_too_long_for_the_model_is_refused_before_anything_is_written(
    run_builtin, random_model, tmp_path, capsys
):
    short = with_config(random_model, tmp_path / "short", max_position_embeddings=16)
    run_builtin("--model_name_or_path", str(short), code=2)
    assert "the model has 16 positions" in capsys.readouterr().err
    assert folder_is_untouched(tmp_path / "run")


def test_a_checkpoint_that_lacks_layers_is_refused(run_builtin, random_model, tmp_path, capsys):
    deep = with_config(random_model, tmp_path / "deep", num_hidden_layers=4)
    run_builtin("--model_name_or_path", str(deep), code=2)
    assert "weights that its config.json asks for are missing" in capsys.readouterr().err


def test_custom_shares_say_how_many_clients_there_are(run_builtin, tmp_path):
    records = run_builtin(*LORA, "--scenario", "custom", "--biased_shares", "1,0,0,0.5")
    assert [client.poisoned_share for client in records[1].clients.values()] == [1.0, 0.0, 0.0, 0.5]


def test_a_schedule_seed_changes_what_clients_train_on(run_builtin, finished):
    seeded = [run_builtin(*LORA, "--schedule_seed", seed, output=seed) for seed in ("1", "2")]
    losses = [
        tuple(client.train_loss for client in records[1].clients.values()) for records in (finished()[1], *seeded)
    ]
    assert len(set(losses)) == 3


def test_bfloat16_weights_travel_in_float32_and_equal_clients_leave_them_alone(run_builtin, random_model, monkeypatch):
    seen = []

    def idle(self, job, features):
        seen.append(job.theta)
        return Update(job.client, {name: value.clone() for name, value in job.theta.items()}, len(features), 1.0)

    monkeypatch.setattr(Client, "fit", idle)
    run_builtin("--dtype", "bfloat16")
    first, last = seen[0], seen[-1]
    assert all(value.dtype is torch.float32 for value in last.values())
    # a mean of equal float32 states may differ in the last bit, which bfloat16 does not have
    assert all(torch.equal(first[name].bfloat16(), last[name].bfloat16()) for name in first)


def test_bf16_autocast_trains(run_builtin):
    assert run_builtin(*LORA, "--bf16")[-1].clients[0].update_norm > 0


def test_a_run_on_real_and_bundled_data_warns_in_every_record(run_builtin):
    records = run_builtin(*LORA, "--biased_dataset", "mini")
    assert all(any("Two worlds are mixed" in warning for warning in record.warnings) for record in records)


def test_a_folder_with_another_run_is_left_alone(run_builtin, finished, capsys):
    folder, _ = finished()
    before = (folder / "metrics.jsonl").read_bytes()
    run_builtin(*LORA, output=folder, code=2)
    assert "give a new folder" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_damaged_data_file_is_named_with_its_line(run_builtin, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    run_builtin("--biased_dataset", str(path), code=2)
    error = capsys.readouterr().err
    assert "rows.jsonl" in error
    assert "line 2" in error
