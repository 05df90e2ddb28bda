"""The Flower host in one process: the bytes of the built-in host, whoever holds which client."""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("flwr", reason="Flower is an extra of its own")

from fedbias_plugin.cli.main import main
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.client import Client
from tests.hosts.cutting import Cut
from tests.hosts.flower.in_process_run import assert_same_results

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
THREE = (*LORA, "--num_rounds", "3")


COMBINATIONS = [("fedavg", "bama"), ("fedadam", "bama"), ("fedprox", "plain"), ("scaffold", "bama")]
"""Of algorithm and rule; the others with ALL_FLOWER_CASES=1, and over TLS."""
if os.environ.get("ALL_FLOWER_CASES") == "1":
    COMBINATIONS += [("fedavg", "plain"), ("fedadam", "plain"), ("fedprox", "bama"), ("scaffold", "plain")]


@pytest.mark.parametrize(("fed_alg", "aggregation"), COMBINATIONS)
def test_three_rounds_of_three_nodes_give_the_bytes_of_the_built_in_host(
    run_builtin, run_flower, tmp_path, fed_alg, aggregation
):
    flags = (*THREE, "--fed_alg", fed_alg, "--aggregation", aggregation)
    run_builtin(*flags, output="builtin")
    run_flower(*flags, output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")


@pytest.mark.parametrize(
    ("flags", "nodes"),
    [
        ("--attack sign_flip --byzantine_clients 1 --aggregation median", 3),
        ("--attack adaptive --byzantine_clients 1 --aggregation predictive", 3),
        ("--attack probe_gaming --byzantine_clients 1 --aggregation bama", 3),
        ("--num_clients 5 --scenario custom --biased_shares 1,0,0,0.5,0 --client_samples 6 --fed_alg scaffold", 2),
        ("--num_clients 5 --scenario custom --biased_shares 1,0,0,0.5,0 --client_samples 6 --sample_clients 2 "
         "--schedule_seed 7 --fed_alg scaffold --local_states disk", 5),
        ("--use_peft false --learning_rate 1e-4 --aggregation bama", 3),
        ("--use_peft false --learning_rate 1e-4 --dtype bfloat16 --fed_alg scaffold", 3),
        ("--use_peft --trainable soft_prompt --num_virtual_tokens 6 --aggregation fedpsf --psm_tau 0.5", 3),
        ("--task dpo --dpo_reference round", 2),
    ],
    ids=["sign flip", "adaptive", "probe gaming", "two nodes", "two of five", "full", "full bfloat16", "fedpsf", "dpo"],
)  # fmt: skip
def test_attacks_samples_of_clients_shared_nodes_and_all_weights_too(
    run_builtin, run_flower, machines, tmp_path, flags, nodes
):
    machines.nodes = nodes
    basis = () if "use_peft" in flags else LORA
    run_builtin(*basis, *flags.split(), output="builtin")
    run_flower(*basis, *flags.split(), output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")


def test_private_clients_too(run_builtin, run_flower, tmp_path):
    pytest.importorskip("opacus", reason="Opacus is an extra of its own")
    flags = (*THREE, "--fed_alg", "scaffold", "--dp_epsilon", "20", "--dp_accountant", "rdp")
    run_builtin(*flags, output="builtin")
    records = run_flower(*flags, output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")
    assert all("dp_epsilon" in client.extra for record in records[1:] for client in record.clients.values())


def test_private_pairs_too_and_a_node_with_rows_of_its_own_says_its_units(run_builtin, run_flower, machines, tmp_path):
    pytest.importorskip("opacus", reason="Opacus is an extra of its own")
    (tmp_path / "words.txt").write_text("number digit\nnurse baker\n")
    flags = (*LORA, "--dp_epsilon", "20", "--dp_accountant", "rdp", "--cda_words", str(tmp_path / "words.txt"))
    flags += ("--cda_ratio", "0.5", "--scenario", "1B2C")
    run_builtin(*flags, output="builtin")
    run_flower(*flags, output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")
    texts = ["Say number %d.", "Name a colour, %d."]
    rows = [{"instruction": texts[n % 4 > 0] % n, "input": "", "output": f"It is {n}."} for n in range(32)]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    machines.configs[2] = {"clean_dataset": str(tmp_path / "own.json")}
    last = run_flower(*flags, output="own")[-1].clients
    assert last[2].rows < 12
    assert {client.extra["dp_delta"] for client in last.values()} == {1 / 16}


def test_clients_that_are_private_as_a_whole_too(run_builtin, run_flower, tmp_path):
    flags = (*THREE, "--dp_unit", "client", "--dp_epsilon", "20", "--aggregation", "bama", "--bama_bias_range", "10")
    run_builtin(*flags, "--bama_min_ability", "0.2", output="builtin")
    run_flower(*flags, "--bama_min_ability", "0.2", output="flower")
    assert_same_results(tmp_path / "builtin", tmp_path / "flower")


def test_the_records_say_what_went_over_the_wire_and_each_node_trains_its_own_clients(run_flower, machines):
    machines.nodes = 2
    records = run_flower(*LORA, "--fed_alg", "scaffold")
    trained = [(node, client) for node, what, client in machines.asked if what == "fit"]
    assert trained == [(0, 0), (1, 1), (0, 2)] * 2
    sizes = [[client.extra["bytes_up"] for client in record.clients.values()] for record in records[1:]]
    assert len({size for found in sizes for size in found}) == 1  # state, control delta and what it keeps
    first, second = (record.clients[0].extra["bytes_down"] for record in records[1:])
    assert (first * 3, second) == (sizes[0][0], sizes[1][0])  # theta; then the two control variates too
    assert [what for _, what, _ in machines.asked[-2:]] == ["end", "end"]


@pytest.fixture
def cut_off(monkeypatch):
    """``cut_off(3)``: the server dies in the client training of that round, none for 0."""
    at = [0]
    begin = Client.begin

    def dies(self, client, round_idx, *rest, **more):
        if (client, round_idx) == (1, at[0] - 1):
            raise Cut
        return begin(self, client, round_idx, *rest, **more)

    monkeypatch.setattr(Client, "begin", dies)
    return lambda number: at.__setitem__(0, number)


@pytest.mark.parametrize("first", ["flower", "builtin"])
def test_a_run_that_was_cut_off_goes_on_on_either_host(run_builtin, run_flower, cut_off, tmp_path, first):
    flags = (*THREE, "--fed_alg", "scaffold", "--aggregation", "bama")
    run_flower(*flags, output="whole")
    cut_off(3)
    with pytest.raises(Cut):
        (run_flower if first == "flower" else run_builtin)(*flags, output="cut")
    assert (tmp_path / "cut/checkpoints/round_002").is_dir()
    cut_off(0)
    if first == "flower":
        assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    else:
        run_flower(resume="cut")
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_a_flower_run_goes_on_as_one(run_flower, cut_off, tmp_path):
    flags = (*THREE, "--fed_alg", "scaffold")
    run_flower(*flags, output="whole")
    cut_off(3)
    with pytest.raises(Cut):
        run_flower(*flags, output="cut")
    cut_off(0)
    with pytest.raises(UserError, match="num_rounds"):
        run_flower("--num_rounds", "9", resume="cut")
    run_flower("--node_wait", "9", resume="cut")
    assert_same_results(tmp_path / "whole", tmp_path / "cut")


def test_a_node_with_rows_of_its_own_is_recorded_without_their_text(run_flower, machines, tmp_path):
    rows = [{"instruction": f"Secret question {n}?", "input": "", "output": f"Secret {n}."} for n in range(30)]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    machines.configs[1] = {"clean_dataset": str(tmp_path / "own.json")}
    own = run_flower(*LORA, "--scenario", "1B2C", output="own")
    machines.configs.clear()
    usual = run_flower(*LORA, "--scenario", "1B2C", output="usual")
    assert own[1].clients[1].train_loss != usual[1].clients[1].train_loss
    assert own[1].clients[0].train_loss == usual[1].clients[0].train_loss
    assert own[1].clients[1].rows == usual[1].clients[1].rows
    for path in (tmp_path / "own").rglob("*"):
        assert not path.is_file() or b"Secret" not in path.read_bytes(), path
    one, other = ((tmp_path / name / "manifest.json").read_text() for name in ("own", "usual"))
    assert one != other
