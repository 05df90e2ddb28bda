"""BamaStrategy in Flower's own loop, over clients in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'fedbias_plugin[flower]' (Python 3.11)")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from fedbias_plugin import BiasSession, UserError
from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.hosts.flower import BamaStrategy
from fedbias_plugin.training.parameters import read_state, write_state
from tests.hosts.flower.in_process_grid import InProcessGrid
from tests.models import add_lora, load_model_and_tokenizer

ROWS = {0: 8, 1: 5, 2: 3}
NODES = {901: {"partition-id": 2}, 117: {"partition-id": 0}, 555: {"partition-id": 1}}
ROUNDS = 2


def trained(theta, client, number):
    """Stands for a client's training: the same step for the same client and round."""
    generator = torch.Generator().manual_seed(100 * number + client)
    return {name: one.float() + 0.3 * torch.randn(one.shape, generator=generator) for name, one in theta.items()}


def client_app(*, change=lambda client, number, content: None, says=True):
    """Clients of an app that is there already; ``change`` alters what one sends."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context) -> Message:
        client, number = context.node_config["partition-id"], message.content["config"]["server-round"]
        state = trained(message.content["arrays"].to_torch_state_dict(), client, number)
        metrics = {"num-examples": ROWS[client], "train_loss": 1.0 + client}
        metrics |= {"partition-id": client} if says else {}
        mu = message.content["config"].get("proximal-mu", 0.0)
        content = RecordDict({"arrays": ArrayRecord(state), "metrics": MetricRecord({**metrics, "mu": mu})})
        change(client, number, content)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context) -> Message:
        client = context.node_config["partition-id"]
        metrics = MetricRecord({"num-examples": ROWS[client], "eval_loss": float(client)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


@pytest.fixture
def server(random_model):
    base, tokenizer = load_model_and_tokenizer(str(random_model))
    return {"model": add_lora(base, r=2, alpha=4, seed=0), "tokenizer": tokenizer}


@pytest.fixture
def make_session(small_data, tmp_path):
    def make(name="run", **flags):
        basis = {"num_clients": 3, "num_rounds": ROUNDS, "scenario": "none", "aggregation": "bama", "bama_lambda": 0.5}
        basis |= {"bama_crows_fraction": 0.5, "bama_stereoset_fraction": 0.5, "data_dir": str(small_data), "seed": 3}
        return BiasSession.create(tmp_path / name, **(basis | flags))

    return make


def over(base):
    return type(f"Mine{base.__name__}", (BamaStrategy, base), {})


def federation(strategy, theta, grid=None):
    """The app's own loop; returns the final state and Flower's result."""
    grid = grid or InProcessGrid(client_app(), NODES)
    result = strategy.start(grid, ArrayRecord(theta), num_rounds=ROUNDS)
    return result.arrays.to_torch_state_dict(), result


def by_hand(server, session, theta):
    """The same clients in a loop of ten lines, averaged by our own server."""
    own = ServerOptimizer("fedavg", num_clients=3)
    write_state(server["model"], theta)
    with session:
        session.after_aggregation(0, **server)
        for number in range(1, ROUNDS + 1):
            locals_ = {client: trained(theta, client, number) for client in ROWS}
            given = {"global_state": theta, "local_states": locals_, "sample_counts": ROWS}
            states = session.before_aggregation(number, **server, **given)
            theta = own.aggregate(number - 1, theta, states, ROWS)
            write_state(server["model"], theta)
            record = session.after_aggregation(number, **server)
    return theta, record


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"bama_weighting": "paper"},
        {"aggregation": "median"},
        {"aggregation": "krum"},
        {"aggregation": "plain", "attack": "sign_flip", "attackers": "1"},
    ],
    ids=["bama", "paper", "median", "krum", "a stage that changes one client's state"],
)
def test_the_weights_and_the_global_state_are_those_of_a_loop_by_hand_bit_for_bit(
    server, make_session, tmp_path, flags
):
    theta = read_state(server["model"])
    final, result = federation(BamaStrategy(session=make_session(**flags), **server), theta)
    mine, record = by_hand(server, make_session("hand", **flags), theta)
    assert same(final, mine)
    assert not same(final, theta)
    here, there = records(tmp_path / "run"), records(tmp_path / "hand")
    assert [one["round"] for one in here] == [0, 1, 2]
    for one, other in zip(here, there, strict=True):
        for client, row in other["clients"].items():
            assert one["clients"][client]["weight"] == row["weight"]
            assert one["clients"][client]["bias_score"] == row["bias_score"]
        assert one["global"]["crows_pairs"] == other["global"]["crows_pairs"]
    last = result.train_metrics_clientapp[ROUNDS]
    assert last["fedbias.clients"] == [0, 1, 2]
    assert last["fedbias.clients.bias_score"] == [row.bias_score for row in record.clients.values()]
    assert last["fedbias.bias_score"] == record.global_.bias_score


def test_the_order_in_which_replies_arrive_changes_no_bit(server, make_session):
    theta = read_state(server["model"])
    results = []
    for name, arrival in [("a", list), ("b", lambda replies: replies[::-1])]:
        strategy = BamaStrategy(session=make_session(name, aggregation="plain"), **server)
        results.append(federation(strategy, theta, InProcessGrid(client_app(), NODES, arrival))[0])
    assert same(*results)


@pytest.mark.parametrize("base", [flower.FedAvg, flower.FedAdam, flower.FedYogi, flower.FedMedian, flower.QFedAvg])
def test_a_session_that_only_measures_leaves_flowers_result_as_it_is(server, make_session, base):
    theta, app = read_state(server["model"]), client_app()
    nodes = {117: {"partition-id": 0}, 555: {"partition-id": 1}, 901: {"partition-id": 2}}

    def in_order(replies):
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    given = {"client_learning_rate": 0.1} if base is flower.QFedAvg else {}
    final, _ = federation(over(base)(session=make_session(aggregation="plain"), **server, **given), theta)
    plain, _ = federation(base(**given), theta, InProcessGrid(app, nodes, in_order))
    assert same(final, plain)


@pytest.mark.parametrize("base", [flower.FedAdam, flower.FedYogi, flower.FedAdagrad, flower.FedAvgM])
@pytest.mark.parametrize("weighting", ["normalized", "paper"])
def test_other_strategies_do_their_own_arithmetic_on_the_weighted_state(server, make_session, base, weighting):
    """One client that sends the weighted state gives, under the strategy alone, the same bits."""
    theta, sent = read_state(server["model"]), []

    class Listening(over(base)):
        def _weighed(self, number, replies):
            sent.append(super()._weighed(number, replies))
            return sent[-1]

    fed_alg = base.__name__.lower()
    session = make_session(bama_weighting=weighting, fed_alg=fed_alg)
    final, _ = federation(Listening(session=session, **server), theta)
    alone, arrays = base(), ArrayRecord(theta)
    grid = InProcessGrid(client_app(), NODES)
    for number, messages in enumerate(sent, start=1):
        alone.configure_train(number, arrays, ConfigRecord(), grid)
        states = [message.content["arrays"].to_torch_state_dict() for message in messages]
        assert same(states[0], states[2])
        content = RecordDict({"arrays": ArrayRecord(states[0]), "metrics": MetricRecord({"num-examples": 1})})
        message = Message(content, 1, "train")
        arrays, _ = alone.aggregate_train(number, [message])
    assert same(final, arrays.to_torch_state_dict())


def test_fedadam_weighs_every_update_by_equations_4_and_5(server, make_session, tmp_path):
    """The first step from zero moments follows from D = sum w_i D_i alone."""
    theta = read_state(server["model"])
    session = make_session(fed_alg="fedadam", bama_weighting="paper", num_rounds=ROUNDS)
    strategy = over(flower.FedAdam)(session=session, eta=0.01, **server)
    grid = InProcessGrid(client_app(), NODES)
    messages = strategy.configure_train(1, ArrayRecord(theta), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    weights = {int(client): row["weight"] for client, row in records(tmp_path / "run")[1]["clients"].items()}
    assert sum(weights.values()) == pytest.approx(1)
    rate = 0.01 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    for name, new in arrays.to_torch_state_dict().items():
        delta = sum(weights[c] * (trained(theta, c, 1)[name] - theta[name]) for c in weights).double()
        expected = theta[name] + rate * 0.1 * delta / ((0.01 * delta**2).sqrt() + 1e-3)
        assert torch.allclose(new.double(), expected, atol=1e-5)


def test_metrics_are_weighed_by_the_rule_unless_kept_apart(server, make_session, tmp_path):
    theta, found = read_state(server["model"]), {}
    for name, apart in [("with", {}), ("apart", {"weigh_metrics": False})]:
        _, result = federation(BamaStrategy(session=make_session(name), **server, **apart), theta)
        found[name] = result.train_metrics_clientapp[1]
        assert result.evaluate_metrics_clientapp[1]["eval_loss"] == pytest.approx((0 * 8 + 1 * 5 + 2 * 3) / 16)
    weights = {int(client): row["weight"] for client, row in records(tmp_path / "with")[1]["clients"].items()}
    assert found["with"]["train_loss"] == pytest.approx(sum(weights[client] * (1 + client) for client in ROWS))
    assert found["apart"]["train_loss"] == pytest.approx(sum(ROWS[client] * (1 + client) for client in ROWS) / 16)
    assert found["with"]["train_loss"] != pytest.approx(found["apart"]["train_loss"], rel=1e-3)
    assert not {"num-examples", "partition-id", "fedbias.weight", "fedbias.average"} & found["with"].keys()
    row = records(tmp_path / "with")[1]["clients"]["2"]
    assert (row["rows"], row["train_loss"]) == (3, 3.0)


def test_every_client_of_fedprox_gets_the_mu_of_equation_6(server, make_session, tmp_path):
    got = {}
    app = client_app(change=lambda client, number, content: got.update({(client, number): content["metrics"]["mu"]}))
    strategy = over(flower.FedProx)(session=make_session(fed_alg="fedprox"), proximal_mu=0.6, **server)
    federation(strategy, read_state(server["model"]), InProcessGrid(app, NODES))
    first = records(tmp_path / "run")[1]["clients"]
    for client in ROWS:
        assert got[client, 1] == pytest.approx(0.2)
        assert got[client, 2] == pytest.approx(0.6 * first[str(client)]["weight"])


def test_a_strategy_of_the_apps_own_sees_every_reply_and_adds_to_the_metrics(server, make_session):
    class Counting(flower.FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies := list(replies))
            metrics["replies"] = len(replies)
            return arrays, metrics

    theta = read_state(server["model"])
    final, result = federation(over(Counting)(session=make_session("own"), **server), theta)
    assert [metrics["replies"] for metrics in result.train_metrics_clientapp.values()] == [3, 3]
    assert same(final, federation(BamaStrategy(session=make_session("plain"), **server), theta)[0])


def test_clients_that_say_no_partition_are_numbered_by_their_nodes(server, make_session, tmp_path):
    federation(
        BamaStrategy(session=make_session(), **server),
        read_state(server["model"]),
        InProcessGrid(client_app(says=False), NODES),
    )
    rows = records(tmp_path / "run")[1]["clients"]
    assert {client: row["rows"] for client, row in rows.items()} == {"0": ROWS[0], "1": ROWS[1], "2": ROWS[2]}


def test_late_and_repeated_replies_do_not_count(server, make_session, caplog):
    theta, seen = read_state(server["model"]), []

    def arrival(replies):
        if replies[0].metadata.message_type != "train":
            return replies
        late = seen[:1]
        seen.extend(replies)
        return [*late, *replies, *replies[:2]]

    repeated, _ = federation(
        BamaStrategy(session=make_session("a"), **server), theta, InProcessGrid(client_app(), NODES, arrival)
    )
    once, _ = federation(BamaStrategy(session=make_session("b"), **server), theta)
    assert same(repeated, once)
    assert "to round 1 came late: left out" in caplog.text
    assert "has replied twice" in caplog.text


def test_a_client_that_fails_is_missing_and_the_others_go_on(server, make_session, tmp_path):
    def change(client, number, content):
        if client == 1:
            raise MemoryError("no room")

    strategy = BamaStrategy(session=make_session(), **server)
    _, result = federation(strategy, read_state(server["model"]), InProcessGrid(client_app(change=change), NODES))
    assert [sorted(one["clients"]) for one in records(tmp_path / "run")] == [[], ["0", "2"], ["0", "2"]]
    assert result.train_metrics_clientapp[2]["fedbias.failed"] == 1


def test_a_round_without_a_result_is_an_error_and_the_run_is_marked_failed(server, make_session, tmp_path):
    def change(client, number, content):
        raise RuntimeError("CUDA out of memory")

    strategy = BamaStrategy(session=make_session(), **server)
    grid = InProcessGrid(client_app(change=change), NODES)
    with pytest.raises(UserError, match=r"Round 1: none of 3 clients .* 3 errors: RuntimeError: CUDA out of memory"):
        federation(strategy, read_state(server["model"]), grid)
    assert not (tmp_path / "run/summary.json").exists()
    nothing = BamaStrategy(session=make_session("late"), **server)
    with pytest.raises(UserError, match="no reply came in time"):
        federation(nothing, read_state(server["model"]), InProcessGrid(client_app(), NODES, lambda replies: []))


def bad(what):
    def change(client, number, content):
        arrays = content["arrays"]
        name = next(iter(arrays))
        if client != 1:
            return
        if what == "missing":
            del arrays[name]
        elif what == "nan":
            arrays[name] = Array(np.full(arrays[name].shape, np.nan, np.float32))
        else:
            arrays[name] = Array(np.zeros((1, 1), np.float32))

    return change


@pytest.mark.parametrize(
    ("what", "fault"),
    [("missing", "1 tensor missing"), ("nan", "NaN or infinite"), ("shape", r"has shape \(1, 1\)")],
)
def test_an_update_that_cannot_be_used_is_refused_by_name(server, make_session, tmp_path, what, fault):
    theta, grid = read_state(server["model"]), InProcessGrid(client_app(change=bad(what)), NODES)
    with pytest.raises(UserError, match=rf"client 1: .*{fault}"):
        federation(BamaStrategy(session=make_session("stop"), **server), theta, grid)
    final, result = federation(BamaStrategy(session=make_session(on_bad_update="drop"), **server), theta, grid)
    row = records(tmp_path / "run")[1]["clients"]["1"]
    assert row["weight"] is None
    assert row["refused"]
    assert np.isnan(result.train_metrics_clientapp[1]["fedbias.clients.weight"][1])
    assert all(one.isfinite().all() for one in final.values())


def test_a_round_in_which_all_updates_are_refused_leaves_the_global_state(server, make_session):
    theta = read_state(server["model"])
    strategy = BamaStrategy(session=make_session(on_bad_update="drop", max_update_norm=1e-6), **server)
    result = strategy.start(InProcessGrid(client_app(), NODES), ArrayRecord(theta), num_rounds=ROUNDS)
    assert not result.arrays
    assert same(read_state(server["model"]), theta)


def test_what_cannot_work_is_refused_before_training(server, make_session):
    session = make_session()
    for base in (flower.FedMedian, flower.Krum, flower.Bulyan):
        with pytest.raises(UserError, match=r"chooses or weighs clients itself, and so does aggregation='bama'"):
            over(base)(session=session, **server)
    with pytest.raises(UserError, match=r"fed_alg='fedadam', the strategy takes fedavg\."):
        BamaStrategy(session=make_session(fed_alg="fedadam"), **server)
    with pytest.raises(UserError, match=r"num_rounds=7, the session num_rounds=2"):
        BamaStrategy(session=session, **server).start(None, ArrayRecord(), num_rounds=7)
    theta = read_state(server["model"])
    theta["odd"] = theta.pop(next(iter(theta)))
    with pytest.raises(UserError, match="has no odd"):
        federation(BamaStrategy(session=session, **server), theta)


def test_replies_that_do_not_say_who_they_are_or_what_they_hold_are_refused(server, make_session):
    def anonymous(client, number, content):
        if client == 1:
            del content["metrics"]["partition-id"]

    def uncounted(client, number, content):
        if client == 1:
            del content["metrics"]["num-examples"]

    def doubled(client, number, content):
        content["more"] = ArrayRecord()

    theta = read_state(server["model"])
    for change, message in [
        (anonymous, "some replies say their 'partition-id', others do not"),
        (uncounted, "how many rows client 1 trained on"),
        (doubled, "reply of client 0 must have one ArrayRecord and one MetricRecord"),
    ]:
        strategy = BamaStrategy(session=make_session(change.__name__), **server)
        with pytest.raises(UserError, match=message):
            federation(strategy, theta, InProcessGrid(client_app(change=change), NODES))


def test_all_weights_of_a_model_with_tied_weights_and_a_dtype_of_its_own(random_model, make_session):
    """A whole state_dict, in bfloat16 on the server and float32 on the wire, which Flower cannot send otherwise."""
    model, tokenizer = load_model_and_tokenizer(str(random_model))
    theta = {name: one.float() for name, one in model.state_dict().items()}
    strategy = BamaStrategy(session=make_session(), model=model.bfloat16(), tokenizer=tokenizer)
    final, _ = federation(strategy, theta)
    assert final.keys() == theta.keys()
    assert all(torch.equal(one, final[name].bfloat16()) for name, one in model.state_dict().items())
