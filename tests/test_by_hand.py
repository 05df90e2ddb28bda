"""``BiasSession.create`` in a federated loop of one's own, with plain ``state_dict()``."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from fedbias_plugin import BiasSession, UserError
from fedbias_plugin.cli.main import main
from fedbias_plugin.training.parameters import read_state
from fedbias_plugin.training.plain_states import PlainStates

SMALL = {"client_samples": 8, "heldout_samples": 4, "num_clients": 3, "num_rounds": 2, "seed": 3}


@pytest.fixture
def tied(random_model):
    """A GPT-2 of 2 layers whose head is its embedding, and a buffer as older GPT-2 checkpoints have it."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(random_model)
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=512))
    model.transformer.h[0].attn.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool).tril())
    model.transformer.register_buffer("scale", torch.full((3,), 0.1))
    assert model.lm_head.weight is model.transformer.wte.weight
    return model, tokenizer


def trained(model, theta, rows, seed):
    """Stands for a client's training: a small step in every trained weight, the same for equal seeds."""
    model.load_state_dict(theta)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return copy.deepcopy(model.state_dict())


def average(states, rows):
    """FedAvg by hand, over every entry of the state."""
    total = sum(rows[client] for client in states)
    first = next(iter(states.values()))
    return {
        n: sum(rows[c] * s[n] for c, s in states.items()) / total if first[n].is_floating_point() else first[n]
        for n in first
    }


def two_rounds(model, tokenizer, output, **flags):
    """The loop of the README; returns theta after each round and what went in and out of the last one."""
    thetas = [copy.deepcopy(model.state_dict())]
    with BiasSession.create(output, **SMALL, **flags) as session:
        rows = {data.client: len(data.rows) for data in session.client_datasets}
        session.after_aggregation(0, model=model, tokenizer=tokenizer)
        for number in (1, 2):
            locals_ = {c: trained(model, thetas[-1], rows, 10 * number + c) for c in rows}
            states = session.before_aggregation(
                number,
                model=model,
                tokenizer=tokenizer,
                global_state=thetas[-1],
                local_states=locals_,
                sample_counts=rows,
            )
            thetas.append(average(states, rows))
            model.load_state_dict(thetas[-1])
            session.after_aggregation(number, model=model, tokenizer=tokenizer)
    return thetas, locals_, states


def records(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_two_rounds_of_bama_by_hand_with_tied_weights_and_buffers(tied, small_data, tmp_path, capsys):
    model, tokenizer = tied
    output = tmp_path / "bama"
    thetas, locals_, states = two_rounds(model, tokenizer, output, data_dir=small_data, aggregation="bama")
    found = records(output)
    assert [record["round"] for record in found] == [0, 1, 2]
    weights = {int(client): row["weight"] for client, row in found[2]["clients"].items()}
    assert sum(weights.values()) == pytest.approx(1)
    assert len({round(weight, 4) for weight in weights.values()}) > 1
    for name, old in thetas[1].items():
        if old.is_floating_point() and name != "transformer.scale":
            expected = old + sum(weights[c] * (locals_[c][name] - old) for c in weights)
            assert torch.allclose(thetas[2][name], expected, atol=1e-5), name
    assert torch.equal(thetas[2]["lm_head.weight"], thetas[2]["transformer.wte.weight"])
    assert torch.equal(thetas[2]["transformer.h.0.attn.mask"], thetas[0]["transformer.h.0.attn.mask"])
    assert torch.allclose(thetas[2]["transformer.scale"], torch.full((3,), 0.1))
    assert states[0] is states[2]
    assert states[0].keys() == model.state_dict().keys()
    assert (output / "summary.json").exists()
    capsys.readouterr()
    assert main(["compare", str(output)]) == 0
    assert "Client weights" in capsys.readouterr().out


def test_a_tied_weight_counts_once_in_the_update_norm(tied, small_data, tmp_path):
    model, tokenizer = tied
    thetas, locals_, _ = two_rounds(model, tokenizer, tmp_path / "run", data_dir=small_data)
    once = dict(model.named_parameters())
    norm = sum(float(((locals_[1][name] - thetas[1][name]).double() ** 2).sum()) for name in once) ** 0.5
    assert records(tmp_path / "run")[2]["clients"]["1"]["update_norm"] == pytest.approx(norm, rel=1e-6)


def test_the_servers_own_weighting_hands_back_the_very_states_that_came_in(tied, small_data, tmp_path):
    _, locals_, states = two_rounds(*tied, tmp_path / "run", data_dir=small_data)
    assert all(states[client] is locals_[client] for client in locals_)


def test_states_in_16_bits_come_back_in_16_bits(tied, small_data, tmp_path):
    model, tokenizer = tied
    thetas, _, states = two_rounds(
        model.bfloat16(), tokenizer, tmp_path / "run", data_dir=small_data, aggregation="bama"
    )
    assert states[0]["lm_head.weight"].dtype == torch.bfloat16
    assert not torch.equal(thetas[2]["lm_head.weight"], thetas[0]["lm_head.weight"])


def test_a_loop_with_data_of_its_own_is_measured_and_weighed(tied, small_data, tmp_path):
    model, tokenizer = tied
    flags = {"scenario": "none", "aggregation": "bama", "num_clients": 2, "num_rounds": 1, "data_dir": small_data}
    session = BiasSession.create(tmp_path / "own", config={"learning_rate": 0.1}, **flags)
    assert session.client_datasets == []
    theta = copy.deepcopy(model.state_dict())
    locals_ = {client: trained(model, theta, None, client) for client in (0, 1)}
    session.before_aggregation(
        1, model=model, tokenizer=tokenizer, global_state=theta, local_states=locals_, sample_counts={0: 5, 1: 7}
    )
    session.after_aggregation(1, model=model, tokenizer=tokenizer)
    session.close()
    config = json.loads((tmp_path / "own/run.json").read_text())["config"]
    assert (config["learning_rate"], config["aggregation"], config["num_clients"]) == (0.1, "bama", 2)


def test_a_session_goes_on_from_its_state(tied, small_data, tmp_path):
    model, tokenizer = tied
    flags = SMALL | {"data_dir": small_data}
    session = BiasSession.create(tmp_path / "run", **flags)
    session.after_aggregation(0, model=model, tokenizer=tokenizer)
    state = json.loads(json.dumps(session.state_dict()))
    with pytest.raises(UserError, match=r"output_dir .* holds .* already"):
        BiasSession.create(tmp_path / "run", **flags)
    with BiasSession.create(tmp_path / "run", resume=state, **flags) as again:
        again.after_aggregation(1, model=model, tokenizer=tokenizer)
    assert [record["round"] for record in records(tmp_path / "run")] == [0, 1]


def test_a_loop_that_breaks_leaves_no_summary(tied, small_data, tmp_path):
    model, tokenizer = tied

    def loop():
        with BiasSession.create(tmp_path / "run", **SMALL, data_dir=small_data) as session:
            session.after_aggregation(0, model=model, tokenizer=tokenizer)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        loop()
    assert (tmp_path / "run/metrics.jsonl").exists()
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"aggregaton": "bama"}, r"^BiasSession.create\(\): unknown name 'aggregaton'. Did you mean 'aggregation'"),
        ({"aggregation": "bamma"}, r"^aggregation 'bamma' is unknown.*Did you mean 'bama'"),
        ({"learning_rate": 0.1}, r"learning_rate is for your own loop .* config=\{'learning_rate': ...\}"),
        ({"task": "sft"}, "task belongs to fedbias run; your own loop decides what is trained"),
        ({"num_clients": 2, "sample_clients": 3}, "sample_clients 3 is more than num_clients 2"),
        ({"scenario": "custom"}, "scenario custom needs biased_shares"),
        ({"num_rounds": 0}, "^num_rounds must be at least 1"),
        (
            {"template": "chat"},
            r"template 'chat' is that of your tokenizer: give prompt=.*ChatTemplate\(tokenizer\).prompt",
        ),
        ({"columns": "question"}, "^columns 'question' must be pairs such as instruction=question,output=answer"),
        ({"dataset_name": "x"}, "dataset_name is not a flag here; give clean_dataset"),
    ],
)
def test_create_refuses_what_the_command_refuses(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        BiasSession.create(tmp_path / "run", data_dir="mini", **flags)


@pytest.mark.parametrize(
    ("clients", "counts", "message"),
    [
        ([0, 3], {0: 1, 3: 1}, "local_states has client 3, but the clients are 0 to 2"),
        (["0"], {"0": 1}, "local_states has client '0', but the clients are 0 to 2"),
        ([0, 2], {0: 1}, "how many rows client 2 trained on"),
        ([1], {1: 0}, "how many rows client 1 trained on, at least 1"),
    ],
)
def test_a_client_that_the_session_does_not_know_is_refused(tied, tmp_path, clients, counts, message):
    model, tokenizer = tied
    theta = read_state(model)
    session = BiasSession.create(tmp_path / "run", data_dir="mini", **SMALL)
    given = {"local_states": dict.fromkeys(clients, theta), "sample_counts": counts, "global_state": theta}
    with pytest.raises(UserError, match=message):
        session.before_aggregation(1, model=model, tokenizer=tokenizer, **given)


def test_custom_shares_say_how_many_clients_there_are(tmp_path):
    session = BiasSession.create(tmp_path / "x", data_dir="mini", scenario="custom", biased_shares=[1, 0, 0.5, 0])
    assert [data.biased_share for data in session.client_datasets] == [1, 0, 0.5, 0]


def altered(state, name, change):
    result = copy.deepcopy(dict(state))
    result[name] = change(result[name].clone())
    return result


def test_states_that_are_the_models_own_memory_are_refused(tied):
    model, _ = tied
    theta = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"^The global state shares the memory of the model .*deepcopy"):
        PlainStates(model, model.state_dict(), {0: theta})
    with pytest.raises(UserError, match=r"^Client 1's state shares the memory of the model .*lm_head.weight|wte"):
        PlainStates(model, theta, {0: theta, 1: model.state_dict()})
    live = dict(model.named_parameters())
    with pytest.raises(UserError, match=r"^The global state shares the memory of the model"):
        PlainStates(model, {name: parameter.detach() for name, parameter in live.items()}, {})


def test_what_cannot_be_weighed_is_refused_by_client_and_name(tied):
    model, _ = tied
    theta = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"^Client 2's state has two different tensors .* ties lm_head.weight to"):
        PlainStates(model, theta, {2: altered(theta, "lm_head.weight", lambda t: t + 1)})
    with pytest.raises(UserError, match=r"^Client 2's state changes transformer.scale, a buffer or frozen weight"):
        PlainStates(model, theta, {2: altered(theta, "transformer.scale", lambda t: t + 1)})
    with pytest.raises(UserError, match=r"which has no head.weight; give model.state_dict\(\)"):
        PlainStates(model, {**theta, "head.weight": torch.zeros(1)}, {})
    lacking = {name: tensor for name, tensor in theta.items() if "h.1." not in name}
    with pytest.raises(
        UserError, match=r"transformer.h.1.attn.c_attn.bias, which is trained, is missing \(and 11 more"
    ):
        PlainStates(model, lacking, {})


def test_an_update_with_nan_in_a_tied_weight_is_left_to_the_servers_checks(tied):
    model, _ = tied
    theta = copy.deepcopy(model.state_dict())
    broken = {
        name: torch.full_like(t, torch.nan) if "w" in name and t.is_floating_point() else t
        for name, t in theta.items()
        if name != "transformer.scale"
    }
    plain = PlainStates(model, theta, {0: {**broken, "extra": torch.zeros(1)}})
    assert {"extra", "transformer.wte.weight"} <= plain.local_states[0].keys()
    assert "lm_head.weight" not in plain.local_states[0]


def test_states_of_the_trained_parameters_alone_pass_untouched(tied):
    model, _ = tied
    theta = read_state(model)
    locals_ = {0: read_state(model)}
    plain = PlainStates(model, theta, locals_)
    assert plain.global_state is theta
    assert plain.local_states is locals_
    assert plain.restored(locals_) is locals_


def test_the_whole_state_dict_of_a_lora_model_works_and_its_frozen_weights_are_the_global_states(random_model):
    from tests.models import add_lora, load_model_and_tokenizer

    model = add_lora(load_model_and_tokenizer(str(random_model))[0], r=2, alpha=4, seed=0)
    theta = copy.deepcopy(model.state_dict())
    plain = PlainStates(model, theta, {0: copy.deepcopy(theta)})
    assert plain.global_state.keys() == read_state(model).keys()
    shared = {name: tensor + 1 for name, tensor in plain.global_state.items()}
    back = plain.restored({0: shared, 1: shared})
    assert back[0] is back[1]
    assert back[0].keys() == theta.keys()
    moved = [name for name in theta if not torch.equal(back[0][name], theta[name])]
    assert moved
    assert all("lora_" in name for name in moved)
    frozen = next(name for name in theta if "lora_" not in name)
    with pytest.raises(UserError, match="a buffer or frozen weight"):
        PlainStates(model, theta, {0: altered(theta, frozen, lambda t: t + 1)})
