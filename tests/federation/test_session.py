"""BiasSession by itself, with a model that nobody trains."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.by_hand import BiasSession
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.session import HostRun
from fedbias_plugin.metrics.suite import Suite
from fedbias_plugin.training.parameters import read_state
from fedbias_plugin.updates.base import Update


@pytest.fixture
def model(random_model):
    from tests.models import add_lora, load_model_and_tokenizer

    base, tokenizer = load_model_and_tokenizer(str(random_model))
    return add_lora(base, r=2, alpha=4, seed=0), tokenizer


@pytest.fixture
def make_session(small_data, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)

    def make(fed_alg="fedavg", seed=3, refuses_updates=True, **arguments):
        bias = BiasArguments(
            data_dir=str(small_data), client_samples=8, heldout_samples=4, bama_crows_fraction=0.5, **arguments
        )
        run = HostRun(tmp_path / "run", fed_alg, num_clients=3, sample_clients=3, num_rounds=2, seed=seed)
        return BiasSession(bias, run, refuses_updates=refuses_updates)

    return make


def perturbed(state, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: theta + scale * torch.randn(theta.shape, generator=generator) for name, theta in state.items()}


def one_round(session, model, tokenizer, counts=None):
    from fedbias_plugin.training.parameters import read_state

    theta = read_state(model)
    locals_ = {client: perturbed(theta, 0.5, client) for client in range(3)}
    states = session.before_aggregation(
        1,
        model=model,
        tokenizer=tokenizer,
        global_state=theta,
        local_states=locals_,
        sample_counts=counts or {0: 8, 1: 8, 2: 8},
    )
    return theta, locals_, states


@pytest.mark.parametrize(
    ("rates", "recorded"), [((3e-5, 3e-5), 3e-5), ((3e-5, 1e-5), None), ((3e-5, None), None), ((None, None), None)]
)
def test_a_learning_rate_is_recorded_where_all_clients_tell_the_same(make_session, model, rates, recorded):
    from fedbias_plugin.training.parameters import read_state

    session, theta = make_session(scenario="none", bias_benchmarks="none"), read_state(model[0])
    updates = {
        client: Update(client, perturbed(theta, 0.5, client), 8, learning_rate=rate)
        for client, rate in enumerate(rates)
    }
    session.receive(1, updates, theta, model=model[0], tokenizer=model[1])
    assert session.after_aggregation(1, model=model[0], tokenizer=model[1]).learning_rate == recorded
    assert session.after_aggregation(2, model=model[0], tokenizer=model[1]).learning_rate is None


def test_the_constructor_writes_nothing_and_closing_it_is_harmless(make_session, tmp_path):
    session = make_session()
    session.close()
    session.close()
    assert not (tmp_path / "run").exists()


def test_host_weighting_hands_back_the_very_states_that_came_in(make_session, model):
    _, locals_, states = one_round(make_session(), *model)
    assert all(states[client] is locals_[client] for client in range(3))


def test_bama_hands_every_client_the_state_of_equation_3(make_session, model):
    session = make_session(aggregation="bama", bama_lambda=1.0)
    counts = {0: 8, 1: 4, 2: 4}
    theta, locals_, states = one_round(session, *model, counts)
    record = session.after_aggregation(1, model=model[0], tokenizer=model[1])
    weights = {client: found.weight for client, found in record.clients.items()}
    assert len({round(weight, 6) for weight in weights.values()}) > 1
    total = sum(weights[c] * counts[c] for c in range(3))
    for name in theta:
        update = sum(weights[c] * counts[c] / total * (locals_[c][name] - theta[name]) for c in range(3))
        assert torch.allclose(states[1][name], theta[name] + update, atol=1e-6)
    assert states[0] is states[2]


def test_scoring_clients_leaves_the_live_model_as_it_was(make_session, model):
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    model[0].train()
    one_round(make_session(), *model)
    assert model[0].training
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())


def test_mu_is_the_hosts_without_bama_and_a_share_of_it_with_bama(make_session, model):
    assert make_session().proximal_mu(0, 0.3) == 0.3
    session = make_session(aggregation="bama")
    assert session.proximal_mu(0, 0.3) == pytest.approx(0.1)
    one_round(session, *model)
    weights = {c: session.state_dict()["rule"]["last_weights"][str(c)] for c in range(3)}
    assert session.proximal_mu(1, 0.3) == pytest.approx(0.3 * weights[1])


def test_a_session_continues_from_its_state_and_takes_later_records_back(make_session, model, tmp_path):
    session = make_session(aggregation="bama")
    one_round(session, *model)
    session.after_aggregation(1, model=model[0], tokenizer=model[1])
    state, line = session.state_dict(), (tmp_path / "run/metrics.jsonl").read_text()
    session.after_aggregation(2, model=model[0], tokenizer=model[1])
    other = make_session(aggregation="bama")
    other.load_state_dict(state)
    assert (tmp_path / "run/metrics.jsonl").read_text() == line
    assert other.proximal_mu(2, 1.0) == session.proximal_mu(2, 1.0)
    assert other.state_dict() == state


def test_a_state_with_other_items_or_rows_or_of_another_version_is_refused(make_session):
    state = make_session().state_dict()
    with pytest.raises(UserError, match="other crows_pairs items and stereoset items and training rows"):
        make_session(seed=6).load_state_dict(state)
    with pytest.raises(UserError, match="version 99"):
        make_session().load_state_dict({**state, "version": 99})


def test_records_that_are_not_what_they_were_are_not_continued(make_session, model, tmp_path):
    session, metrics = make_session(), tmp_path / "run/metrics.jsonl"
    session.after_aggregation(0, model=model[0], tokenizer=model[1])
    state, line = session.state_dict(), metrics.read_text()
    for damaged in (line.replace("crows_pairs", "crows_pairz", 1), line[:-20], ""):
        metrics.write_text(damaged)
        with pytest.raises(UserError, match="is not what it was when the checkpoint was written"):
            make_session().load_state_dict(state)
        assert metrics.read_text() == damaged


def test_a_session_that_only_watches_hands_back_an_update_that_is_no_number(make_session, model):
    from fedbias_plugin.training.parameters import read_state

    session = make_session(scenario="none", bias_benchmarks="none", refuses_updates=False)
    theta = read_state(model[0])
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in theta.items()}
    given = {"model": model[0], "tokenizer": model[1], "global_state": theta, "sample_counts": {0: 8}}
    given["local_states"] = {0: broken}
    assert session.before_aggregation(1, **given)[0] is broken
    record = session.after_aggregation(1, model=model[0], tokenizer=model[1])
    assert record.clients[0].refused is None
    assert any(warning.startswith("update faulty but used: client 0 (") for warning in record.warnings)
    with pytest.raises(UserError, match=r"client 0: .*NaN"):
        make_session(scenario="none", bias_benchmarks="none").before_aggregation(1, **given)


def test_a_row_of_two_data_sets_that_is_trained_on_and_held_out_is_told(make_session, tmp_path):
    lines = [f'{{"instruction": "Ask {n}", "output": "Answer {n}"}}\n' for n in range(28)]
    flags = {"scenario": "3B", "clean_dataset": str(tmp_path / "c.jsonl"), "biased_dataset": str(tmp_path / "b.jsonl")}
    (tmp_path / "c.jsonl").write_text("".join(lines[:4]))
    (tmp_path / "b.jsonl").write_text("".join(lines[1:25]))
    said = [one for one in make_session(**flags)._inputs.warnings if one.startswith("tested on training rows")]
    assert [one.partition(" have the texts")[0] for one in said] == [
        "tested on training rows: 3 of the 4 held-out rows"
    ]
    (tmp_path / "b.jsonl").write_text("".join(lines[4:28]))
    assert not any(one.startswith("tested on") for one in make_session(**flags)._inputs.warnings)


@pytest.mark.parametrize(
    ("flags", "is_said"),
    [({"dp_epsilon": 3.0}, True), ({}, False), ({"dp_epsilon": 3.0, "client_test_fraction": 0.0}, False)],
)
def test_privacy_of_rows_says_that_test_rows_have_none(make_session, flags, is_said):
    warnings = make_session(**{"client_test_fraction": 0.25, "bias_benchmarks": "none", **flags})._inputs.warnings
    said = [one for one in warnings if one.startswith("row privacy: epsilon covers the rows that clients train on")]
    assert len(said) == is_said


def test_any_metric_says_that_it_is_of_each_clients_own_model(make_session, model):
    base, tokenizer = model
    session = make_session(client_test_fraction=0.25, bias_benchmarks="none")
    assert not session.measures_own_models

    def own_block(scores, clients, *, seed):
        return {"value": seed, "n": len(clients), "scored": sorted(scores)}

    session._inputs.suite.metrics.append(SimpleNamespace(name="own", of_model="own", own_block=own_block))
    assert session.measures_own_models
    theta = read_state(base)
    found = session.of_own_models([(2, theta)], theta, model=base, tokenizer=tokenizer)
    assert found == {"own": {"value": 3, "n": 3, "scored": [2]}}


def test_scenario_none_leaves_the_data_to_the_host(make_session):
    assert make_session(scenario="none").client_datasets == []
    assert [len(dataset.rows) for dataset in make_session().client_datasets] == [8, 8, 8]


def test_ability_that_nobody_can_measure_is_refused_at_the_start(make_session):
    flags = {"aggregation": "bama", "bama_min_ability": 0.9, "scenario": "none"}
    with pytest.raises(UserError, match=r"compare clients by stereoset or heldout_loss.*--bama_stereoset_fraction > 0"):
        make_session(bias_benchmarks="crows_pairs", **flags)
    make_session(**flags)


def test_clients_that_sent_the_same_state_are_scored_once_and_measured_alike(make_session, model, monkeypatch):
    session, theta, scored = make_session(aggregation="bama"), read_state(model[0]), []
    assess = Suite.assess
    monkeypatch.setattr(Suite, "assess", lambda *about, **how: scored.append(1) or assess(*about, **how))
    other = {name: tensor.clone() for name, tensor in theta.items()}
    last = sorted(other, key=lambda name: other[name].numel())[-1]
    other[last].view(-1)[-1] += 0.5  # one number of the largest tensor
    states = {0: theta, 1: other, 2: {name: tensor.clone() for name, tensor in theta.items()}}
    updates = {client: Update(client, state, 8) for client, state in states.items()}
    session.receive(1, updates, theta, model=model[0], tokenizer=model[1])
    measured = {client: update.measured for client, update in updates.items()}
    assert len(scored) == 2
    assert measured[0] == measured[2] is not measured[0]
    assert measured[1].metrics != measured[0].metrics
