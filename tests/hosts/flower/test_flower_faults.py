"""Nodes that fail, lie or vanish, in whole runs of the Flower host in one process."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is an extra of its own")

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.flower import fleet, server_app, worker
from fedbias_plugin.hosts.flower.wire import packed, unpacked
from tests.hosts.flower.in_process_run import FIRST, assert_same_results, is_fit, run_config
from tests.hosts.test_bad_updates import FAULTS

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
DROP = ("--on_bad_update", "drop")


@pytest.fixture
def quick():
    """One benchmark and one round are enough here."""
    return (*LORA, "--bias_benchmarks", "crows_pairs", "--num_rounds", "1")


@pytest.mark.parametrize("policy", ["drop", "stop"])
@pytest.mark.parametrize("kind", FAULTS)
def test_an_update_that_cannot_be_used_is_refused_by_name(run_flower, machines, quick, kind, policy):
    change, phrase = FAULTS[kind]

    def spoil(request, answer):
        if not is_fit(request, 1):
            return answer
        return dataclasses.replace(answer, states={"state": packed(change(unpacked(answer.states["state"])))})

    machines.change = spoil
    if policy == "stop":
        with pytest.raises(UserError, match=r"Round 1 has updates that cannot be used \(client 1: "):
            run_flower(*quick, "--on_bad_update", "stop")
        return
    record = run_flower(*quick, *DROP)[1]
    assert phrase in record.clients[1].refused
    assert record.clients[0].weight + record.clients[2].weight == pytest.approx(1)
    assert any(warning.startswith("update refused: client 1 (") for warning in record.warnings)


def test_an_update_that_is_too_large_is_refused(run_flower, machines, quick):
    machines.change = lambda request, answer: (
        dataclasses.replace(
            answer,
            states={"state": packed({name: t * 1e3 + 1 for name, t in unpacked(answer.states["state"]).items()})},
        )
        if is_fit(request, 1)
        else answer
    )
    record = run_flower(*quick, *DROP, "--max_update_norm", "50")[1]
    assert "larger than --max_update_norm 50" in record.clients[1].refused
    assert record.clients[0].refused is None


@pytest.mark.parametrize("label", ["sent control_delta", "keeps control"])
def test_what_travels_beside_the_state_is_checked_too(run_flower, machines, quick, label):
    def spoil(request, answer):
        if is_fit(request, 1):
            part = unpacked(answer.states[label])
            part[next(iter(part))].view(-1)[0] = torch.nan
            answer.states[label] = packed(part)
        return answer

    machines.change = spoil
    record = run_flower(*quick, *DROP, "--fed_alg", "scaffold")[1]
    assert f"{label.split()[1]}: 1 entry is NaN" in record.clients[1].refused


@pytest.mark.parametrize(
    ("lie", "phrase"),
    [
        ({"client": 0}, "it answered with client 0, not 1"),
        ({"round_idx": 5}, "it answered with round_idx 5, not 0"),
        ({"rows": 10**9}, "it answered with rows 1000000000, not 8"),
        ({"steps": -1}, "it answered with steps '-1', which is no count"),
        ({"loss": "low"}, "it answered with loss 'low', which is no number"),
        ({"extra": {"epsilon": float("nan")}}, "it answered with epsilon 'nan', which is no number"),
        ({"extra": None}, "it answered with extra 'None', which is no number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_node_that_lies_about_the_facts_is_left_out_of_the_round(run_flower, machines, quick, lie, phrase):
    machines.change = machines.damaged(**lie)
    record = run_flower(*quick)[1]
    assert record.clients[1].refused == phrase
    assert f"client 1 is missing: {phrase}" in record.warnings
    assert record.clients[0].weight + record.clients[2].weight == pytest.approx(1)


def test_names_of_states_come_from_the_run_not_from_the_node(run_flower, machines, quick, tmp_path):
    def more(request, answer):
        if is_fit(request, 1):
            answer.states["keeps /../../../../trojan"] = answer.states["state"]
        return answer

    machines.change = more
    record = run_flower(*quick, "--local_states", "disk")[1]
    assert "it sent the states" in record.clients[1].refused
    assert not list(tmp_path.rglob("*trojan*"))


def test_a_stale_answer_is_refused_and_a_repeated_one_is_not_counted(
    run_builtin, run_flower, machines, quick, tmp_path
):
    flags = (*quick, "--num_rounds", "2")
    run_builtin(*flags, output="builtin")
    seen = []

    def repeated(replies):
        found = [reply for reply in replies for _ in range(2)] + seen[-2:]  # each twice, and some of before
        seen.extend(replies)
        return found[::-1]

    machines.arrival = repeated
    run_flower(*flags, output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")
    machines.arrival, first = list, {}

    def stale(request, answer):
        return first.setdefault(1, answer) if is_fit(request, 1) else answer

    machines.change = stale
    records = run_flower(*flags, output="stale")
    assert records[1].clients[1].refused is None
    assert records[2].clients[1].refused == "it answered with round_idx 0, not 1"


def test_one_failure_is_asked_once_more_and_leaves_no_trace(run_builtin, run_flower, machines, quick, tmp_path, capsys):
    run_builtin(*quick, output="builtin")
    counts = itertools.count()

    def fails(request, answer):
        if is_fit(request, 1) and next(counts) == 0:
            raise RuntimeError("the process was killed")
        return answer

    machines.change = fails
    run_flower(*quick, output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")
    assert "the process was killed; asked once more" in capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "flower/metrics.jsonl").read_text().splitlines()]
    extra = {client: found["extra"] for client, found in records[1]["clients"].items()}
    assert extra["1"]["bytes_down"] == 2 * extra["0"]["bytes_down"]


def test_damaged_bytes_are_asked_for_once_more(run_builtin, run_flower, machines, quick, tmp_path, capsys):
    run_builtin(*quick, output="builtin")
    counts = itertools.count()

    def damaged(replies):
        for reply in replies:
            arrays = [name for name in reply.content if name.startswith("state ")] if reply.has_content() else []
            if arrays and next(counts) == 0:
                array = next(iter(reply.content[arrays[0]].values()))
                array.data = bytes([array.data[0] ^ 1]) + array.data[1:]
        return replies

    machines.arrival = damaged
    run_flower(*quick, output="flower")
    assert "client 0: A message arrived with other bytes than were sent" in capsys.readouterr().err
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")


@pytest.mark.parametrize("how", ["raises", "says so", "refuses"])
def test_a_client_that_fails_twice_is_missing_and_named(run_flower, machines, quick, how):
    def fails(request, answer):
        if not is_fit(request, 1):
            return answer
        if how == "raises":
            raise RuntimeError("out of memory")
        kind = "user error" if how == "refuses" else "fault"
        return dataclasses.replace(answer, meta={"error": "out of\nmemory " * 50, "kind": kind}, states={})

    machines.change = fails
    record = run_flower(*quick)[1]
    reason = record.clients[1].refused
    assert "out of memory" in reason
    assert len(reason) < 400
    assert f"client 1 is missing: {reason}" in record.warnings
    assert record.clients[1].weight is None
    assert len([1 for _, what, client in machines.asked if client == 1]) == (1 if how == "refuses" else 2)


def test_with_all_failing_the_run_fails_and_goes_on_from_its_checkpoint(run_flower, machines, quick, tmp_path):
    flags = (*quick, "--num_rounds", "2", "--fed_alg", "scaffold")
    run_flower(*flags, output="whole")

    def fails(request, answer):
        if any(is_fit(request, client, {2}) for client in range(3)):
            raise RuntimeError("no power")
        return answer

    machines.change = fails
    with pytest.raises(UserError, match="Round 2: 0 of 3 clients answered, and --min_clients asks for 2"):
        run_flower(*flags, output="cut")
    machines.change = lambda request, answer: answer
    run_flower(resume="cut")
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_too_few_nodes_are_waited_for_and_then_named(run_flower, machines, quick, basis, capsys):
    machines.nodes = 1
    flags = (*quick, "--node_wait", "1.5")
    machines.configs = {0: {"num-partitions": 3}}
    with pytest.raises(UserError, match=r"1 of the clients 0, 1, 2 came within --node_wait 1.5 seconds"):
        run_flower(*flags)
    grid = machines.grid()
    context = dataclasses.replace(grid.contexts[FIRST], run_config=run_config([*basis("b"), *flags]))
    with pytest.raises(UserError):
        server_app.app(grid, context)
    assert "--min_clients asks for 2" in capsys.readouterr().err


def test_a_run_begins_and_goes_on_without_a_node_that_is_not_there(run_flower, machines, quick):
    machines.nodes, machines.configs = 2, {node: {"num-partitions": 3} for node in range(2)}
    flags = (*quick, "--num_rounds", "2", "--node_wait", "1.5", "--checkpoint_every", "0")
    records = run_flower(*flags)
    assert [record.clients[2].refused for record in records[1:]] == ["its node is not there"] * 2
    assert [record.clients[0].weight for record in records[1:]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        ({"clean_datasett": "x"}, "'clean_datasett' is no name.*Did you mean 'clean_dataset'"),
        ({"partition-id": "first"}, "needs --node-config 'partition-id=I num-partitions=N', two whole numbers"),
        ({"partition-id": 7}, "leaves this node without a client"),
        ({"model_name_or_path": "/nowhere/model"}, "/nowhere/model"),
        ({"model_name_or_path": "tiny"}, "another base model or tokenizer"),
        ({"data_dir": "mini"}, "deals other rows to client 1"),
    ],
    ids=["unknown key", "no number", "no client", "no model", "another model", "other rows"],
)
def test_a_node_that_does_not_fit_ends_the_run_before_it_begins(run_flower, machines, quick, config, phrase, tmp_path):
    machines.configs = {1: config}
    with pytest.raises(UserError, match=phrase):
        run_flower(*quick, "--node_wait", "1")
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_node_that_comes_late_and_does_not_fit_is_left_out(run_flower, machines, quick, monkeypatch, caplog):
    machines.nodes, machines.configs = 4, {node: {"num-partitions": 3} for node in range(3)}
    machines.configs[3] = {"partition-id": 0, "num-partitions": 3, "data_dir": "mini"}
    late = []
    grid = machines.grid

    def with_a_late_one():
        made = grid()
        stranger = made.contexts.pop(FIRST + 3)
        late.append((made, stranger))
        return made

    def joins(request, answer):
        made, stranger = late[-1]
        made.contexts[FIRST + 3] = stranger
        return answer

    monkeypatch.setattr(machines, "grid", with_a_late_one)
    machines.change = lambda request, answer: joins(request, answer) if is_fit(request, 2, {1}) else answer
    records = run_flower(*quick, "--num_rounds", "3")
    assert [record.clients[0].refused for record in records[1:]] == [None] * 3
    assert caplog.text.count("is left out: The node of client(s) 0 deals other rows") == 1
    assert [what for node, what, _ in machines.asked if node == 3] == ["describe"]


def test_a_silent_node_is_waited_for_as_long_as_asked(run_flower, machines, quick):
    held = []

    def late(replies):
        """The first answer of client 1 to ``fit`` comes when it is too late."""
        found = [reply for reply in replies if "state state" not in reply.content or held or not is_of(reply, 1)]
        held.extend(reply for reply in replies if reply not in found)
        return found

    machines.arrival = late
    records = run_flower(*quick, "--num_rounds", "2", "--round_timeout", "3")
    assert len(held) == 1
    assert records[1].clients[1].refused == "no answer within --round_timeout 3"
    assert records[2].clients[1].refused is None


def is_of(reply, client):
    return json.loads(reply.content["fedbias"]["header"])["meta"].get("client") == client


def of_client(machines, client):
    """What a client was asked for, in order."""
    return [ask for _, ask, whose in machines.asked if whose == client]


def test_large_updates_wait_and_are_collected_one_after_the_other(
    run_builtin, run_flower, machines, monkeypatch, tmp_path
):
    monkeypatch.setattr(worker, "HELD_FROM", 1)
    flags = (*LORA, "--fed_alg", "scaffold", "--aggregation", "bama")
    run_builtin(*flags, output="builtin")
    run_flower(*flags, output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")
    assert [of_client(machines, client) for client in range(3)] == [["fit", "collect"] * 2] * 3


def test_an_update_that_is_lost_while_it_waits_is_trained_again(
    run_builtin, run_flower, machines, monkeypatch, quick, tmp_path
):
    monkeypatch.setattr(worker, "HELD_FROM", 1)
    lost = []

    def lose(request, answer):
        if request.meta["ask"] == "collect" and request.meta["client"] == 1 and not lost:
            lost.append(answer)
            raise RuntimeError("the worker died")
        return answer

    machines.change = lose
    run_builtin(*quick, output="builtin")
    run_flower(*quick, output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")
    assert of_client(machines, 1) == ["fit", "collect", "fit", "collect"]
    assert lost


def test_a_node_that_lets_the_server_wait_for_an_update_that_it_does_not_have_is_missing(run_flower, machines, quick):
    for says, phrase in ((worker.HELD, "it answered with client None"), ("error", "its node failed")):
        machines.asked.clear()
        machines.change = lambda request, answer, says=says: (
            dataclasses.replace(
                answer, meta={worker.HELD: True, **({says: "x"} if request.meta["ask"] == "collect" else {})}, states={}
            )
            if request.meta.get("client") == 1
            else answer
        )
        record = run_flower(*quick, output=says)[1]
        assert phrase in record.clients[1].refused
        assert len(of_client(machines, 1)) <= 4


def test_a_node_that_hangs_while_its_update_is_collected_does_not_hold_up_the_others(
    run_flower, machines, monkeypatch, quick
):
    monkeypatch.setattr(worker, "HELD_FROM", 1)
    monkeypatch.setattr(fleet, "TURN", 1.0)
    machines.arrival = lambda replies: [r for r in replies if "state state" not in r.content or not is_of(r, 0)]
    record = run_flower(*quick, "--round_timeout", "6")[1]
    assert record.clients[0].refused == "no answer within --round_timeout 6"
    assert [record.clients[client].refused for client in (1, 2)] == [None, None]
