"""``--exact_lora``: what is averaged, what goes into the frozen weights, what is refused, and runs that go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fedbias_plugin.aggregation.bama import Bama
from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.aggregation.median import Median
from fedbias_plugin.aggregation.plain import Plain
from fedbias_plugin.aggregation.substitution import weighted_state
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.cli.main import main
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.run_description import HostRun
from fedbias_plugin.federation.saving import merged_weights, save_global_model
from fedbias_plugin.registry import build
from fedbias_plugin.tasks.base import ModelKind
from fedbias_plugin.training.models import load_model, load_tokenizer
from fedbias_plugin.training.parameters import read_state, write_state
from fedbias_plugin.training.trainables import Lora
from fedbias_plugin.updates.base import Update
from fedbias_plugin.updates.exact_lora import ExactLora, lora_layers
from tests.hosts.conftest import basis, run_builtin  # noqa: F401
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run
from tests.models import add_lora


@pytest.fixture
def model(random_model: Path):
    """A small model with adapters on linear layers of every shape."""
    return add_lora(load_model(str(random_model)), r=2, alpha=8, seed=0, target_modules="all-linear").eval()


def round_of(model, fed_alg="fedavg") -> ClientReports:
    """Three clients of 10, 20 and 30 rows that have moved A and B of the model's."""
    draws = torch.Generator().manual_seed(3)
    theta = read_state(model)
    local = {c: {n: t + 0.1 * torch.randn(t.shape, generator=draws) for n, t in theta.items()} for c in range(3)}
    return ClientReports(fed_alg, {0: 10, 1: 20, 2: 30}, {0: 5.0, 1: 1.0, 2: 9.0}, theta, local)


def products(state):
    names = [name for name in state if "lora_A" in name]
    return {name: state[name.replace("lora_A", "lora_B")].double() @ state[name].double() for name in names}


def mean_products(reports, factors):
    own = {client: products(state) for client, state in reports.local_states.items()}
    return {name: sum(g * own[c][name] for c, g in factors.items()) for name in products(reports.global_state)}


def test_every_lora_round_records_how_far_the_usual_mean_is_off_and_leaves_it_as_it_is(model):
    reports = round_of(model)
    plain = Plain().weigh(reports)
    found = ExactLora().on_weights(plain, Plain(), reports, 1)
    assert (found.factors, found.state) == (None, None)
    usual = products(weighted_state(reports.global_state, reports.local_states, plain.weights))
    exact, before = mean_products(reports, plain.weights), products(reports.global_state)
    missed = sum(float((exact[name] - usual[name]).square().sum()) for name in exact)
    moved = sum(float((exact[name] - before[name]).square().sum()) for name in exact)
    assert found.of_round == {"lora_mean_error": pytest.approx((missed / moved) ** 0.5, rel=1e-4)}
    assert found.of_round["lora_mean_error"] > 0.1
    median = Median().weigh(reports)
    assert ExactLora().on_weights(median, Median(), reports, 1) is median


def test_truncated_products_are_the_best_of_the_mean_by_bama_s_factors(model):
    reports = round_of(model)
    weighting = Bama().weigh(reports)
    found = ExactLora(exact_lora="truncate").on_weights(weighting, Bama(), reports, 1)
    assert (found.weights, found.mass, found.factors) == (weighting.weights, weighting.mass, None)
    exact, made = mean_products(reports, weighting.factors), products(found.state)
    lost = 0.0
    for name, matrix in exact.items():
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.allclose(made[name], u[:, :2] * s[:2] @ v[:2], atol=1e-6)
        lost += float(s[2:].square().sum())
    before = products(reports.global_state)
    moved = sum(float((exact[name] - before[name]).square().sum()) for name in exact)
    assert found.of_round["lora_left_out"] == pytest.approx((lost / moved) ** 0.5, rel=1e-4)
    assert {name: (t.shape, t.dtype) for name, t in found.state.items()} == {
        name: (t.shape, t.dtype) for name, t in reports.global_state.items()
    }
    rule, stage = build("rule", "median", BiasArguments()), ExactLora(exact_lora="truncate")
    with pytest.raises(UserError, match="median gives a state"):
        stage.on_weights(rule.weigh(reports), rule, reports, 1)


def test_what_is_folded_makes_the_weights_the_mean_of_products_to_1e_6_and_is_saved_whole(
    model, random_model, tmp_path
):
    reports, weighting = round_of(model), Bama().weigh(round_of(model))
    before = {name: layer.base_layer.weight.clone() for name, (layer, _) in lora_layers(model).items()}
    stage = ExactLora(exact_lora="fold")
    stage.on_model(model)
    found = stage.on_weights(weighting, Bama(), reports, 1)
    assert (found.factors, found.state) == (weighting.factors, None)
    write_state(model, weighted_state(reports.global_state, reports.local_states, found.factors))
    stage.on_model(model)
    exact, after = mean_products(reports, weighting.factors), products(read_state(model))
    for name, (layer, _) in lora_layers(model).items():
        whole = layer.base_layer.weight.double() + 4 * after[name]  # alpha / r = 4
        assert torch.allclose(whole, before[name].double() + 4 * exact[name], atol=1e-6), name
    unchanged = {name: layer.base_layer.weight.clone() for name, (layer, _) in lora_layers(model).items()}
    stage.on_model(model)  # nothing is added twice
    assert all(torch.equal(layer.base_layer.weight, unchanged[n]) for n, (layer, _) in lora_layers(model).items())
    # Saved, it is a model like any other, with the same logits
    save_global_model(model, load_tokenizer(str(random_model)), tmp_path / "model", "card", merged=True)
    assert not list((tmp_path / "model").glob("adapter*"))
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected, loaded = model(tokens).logits, load_model(str(tmp_path / "model")).eval()(tokens).logits
    assert torch.allclose(expected, loaded, atol=1e-4)
    assert not any("lora" in name for name in merged_weights(model))
    # A new process puts them back
    other = add_lora(load_model(str(random_model)), r=2, alpha=8, seed=0, target_modules="all-linear")
    again = ExactLora(exact_lora="fold")
    again.load_state_dict(stage.state_dict())
    again.on_model(other)
    assert all(torch.equal(layer.base_layer.weight, unchanged[n]) for n, (layer, _) in lora_layers(other).items())


def test_a_saved_classifier_has_the_head_that_was_trained(random_model, tmp_path):
    kind = ModelKind("AutoModelForSequenceClassification", {"id2label": dict(enumerate("abc"))})
    model = Lora(peft_lora_r=2).prepare(load_model(str(random_model), kind=kind), seed=0).eval()
    write_state(model, {name: tensor + 0.1 for name, tensor in read_state(model).items()})
    save_global_model(model, load_tokenizer(str(random_model)), tmp_path / "model", "card", merged=True)
    loaded, said = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, loaded.eval()(tokens).logits, atol=1e-4)


def test_a_model_without_lora_has_nothing_to_fold_into(random_model):
    with pytest.raises(UserError, match="this run trains none"):
        ExactLora(exact_lora="fold").on_model(load_model(str(random_model)))


def test_who_was_away_is_sent_what_it_missed_but_no_more_than_the_weights(model):
    stage, reports = ExactLora(exact_lora="fold"), round_of(model)
    stage.on_model(model)

    def received(client):
        update = stage.at_client(Update(client, {}, 1), reports.global_state, 1, 3)
        return update.received.get("frozen", 0)

    def folded():
        stage.on_weights(Plain().weigh(reports), Plain(), reports, 1)
        stage.on_model(model)

    assert received(0) == 0
    folded()
    one = 4 * sum(tensor.nbytes for tensor in reports.global_state.values())  # three clients and their mean
    assert [received(0), received(0)] == [one, 0]
    folded()
    again = ExactLora(exact_lora="fold")
    again.load_state_dict(stage.state_dict())
    again.on_model(model)
    stage = again
    whole = sum(weight.nbytes for weight in stage.frozen.values())
    assert [received(0), received(1)] == [one, min(2 * one, whole)]


def test_frozen_weights_of_16_bits_are_refused_before_training(model):
    with pytest.raises(UserError, match=r"is torch.bfloat16; load the model with --dtype float32"):
        ExactLora(exact_lora="fold").on_model(model.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("flags", "run", "said"),
    [
        ({}, {"fed_alg": "fedadam"}, "--fed_alg fedadam makes another step of A and B. Give --fed_alg fedavg or"),
        ({"aggregation": "median"}, {}, "needs clients' weights, and --aggregation median has none"),
        (
            {"aggregation": "fedavgw", "fedavgw_scope": "lora"},
            {},
            "and --aggregation fedavgw has none that hold for every",
        ),
        ({}, {"config": {"use_peft": False}}, "averages the products of LoRA, and this run trains none"),
        ({"trainable": "soft_prompt"}, {}, "averages the products of LoRA, and this run trains none"),
        ({"dp_unit": "client", "dp_epsilon": 3.0}, {}, "--dp_unit client has neither clipped nor covered"),
        ({}, {"trains_here": False}, "only fedbias run trains all of them in one model"),
        ({}, {"config": {"load_in_4bit": True}}, "which --load_in_4bit would round away"),
        ({}, {"config": {"dtype": "bfloat16"}}, "which --dtype bfloat16 would round away"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(tmp_path, flags, run, said):
    arguments = BiasArguments(exact_lora="fold", **flags)
    host = {"fed_alg": "fedavg", "num_clients": 3, "sample_clients": 3, "num_rounds": 1, "seed": 1, "trains_here": True}
    with pytest.raises(UserError, match=said):
        ExactLora(exact_lora="fold").prepare(arguments, HostRun(tmp_path, **{**host, **run}), {})
    ExactLora(exact_lora="fold").prepare(BiasArguments(exact_lora="fold"), HostRun(tmp_path, **host), {})
    ExactLora().prepare(arguments, HostRun(tmp_path, **{**host, **run}), {})


def test_a_run_that_folds_goes_on_to_the_same_bytes_and_saves_the_whole_model(run_builtin, tmp_path):  # noqa: F811
    flags = ("--use_peft", "--exact_lora", "fold", "--aggregation", "agnostic", "--client_test_fraction", "0.25")
    flags = (*flags, "--num_rounds", "3", "--bias_benchmarks", "crows_pairs", "--agnostic_step", "0.5")
    records = run_builtin(*flags, output="whole")
    assert [list(record.extra) for record in records] == [[], *[["lora_mean_error"]] * 3]
    assert records[1].clients[0].weight == pytest.approx(1 / 3)
    assert len({client.weight for client in records[3].clients.values()}) == 3
    # From the first average on: q and v of two layers, which are less than the factors of rank 4 x 8; see above
    sent = [
        sum(client.payload["received"].get("frozen", 0) for client in record.clients.values()) for record in records
    ]
    assert sent == [0, 0, *[3 * 2 * 2 * 32 * 32 * 4] * 2]
    assert any("an adapter alone is not the model" in text for text in records[0].warnings)
    with cut_off_in():
        run_builtin(*flags, output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert (tmp_path / "whole/model/model.safetensors").is_file()
    assert not (tmp_path / "whole/adapter").exists()


def test_a_run_with_q_fedavg_and_truncated_products_says_what_its_step_is(run_builtin):  # noqa: F811
    flags = ("--use_peft", "--aggregation", "qfedavg", "--client_test_fraction", "0.25", "--bias_benchmarks", "none")
    record = run_builtin(*flags, "--qfedavg_lipschitz", "1", "--exact_lora", "truncate", "--num_rounds", "1")[1]
    assert 0 < record.aggregation_mass < 1
    assert sum(client.weight for client in record.clients.values()) == pytest.approx(1)
    assert set(record.extra) == {"lora_mean_error", "lora_left_out"}
