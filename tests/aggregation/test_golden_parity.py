"""OpenFedLLM's own numbers, recorded by running it, against this package's arithmetic.

FedAdagrad, FedYogi and FedAdam divide by roots, which torch takes from a library that rounds the last bit differently
on different CPUs. There the recorded global state is met to that bit, and OpenFedLLM's formula, as this machine
computes it, exactly.
"""

import json

import numpy as np
import pytest
import torch

from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.training.schedule import clients_this_round, cosine_learning_rate, rows_this_round
from tests.golden import golden_file

CASES = 16
WITH_ROOTS = ("fedadagrad", "fedyogi", "fedadam")
FILE = "openfedllm_aggregate.json"


@pytest.fixture(scope="module")
def golden():
    return json.loads(golden_file(FILE).read_text(encoding="utf-8"))


def state_of(recorded):
    return {
        name: torch.tensor(tensor["data"], dtype=torch.float64).to(torch.float32).reshape(tensor["shape"])
        for name, tensor in recorded.items()
    }


def assert_same_state(found, recorded):
    wanted = state_of(recorded)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], wanted[name]), name


def assert_same_to_the_last_bit(found, before, recorded):
    """The last bit of the larger of the two that were added: theta and the step."""
    for name, wanted in state_of(recorded).items():
        distance = np.abs(found[name].double().numpy() - wanted.double().numpy())
        step = wanted.numpy() - before[name].numpy()
        assert (distance <= np.spacing(np.maximum(np.abs(before[name].numpy()), np.abs(step)))).all(), name


def assert_is_the_formula_s(found, before, recorded, flags):
    """``theta + eta m / (sqrt(v) + tau)``, in the order of operations of OpenFedLLM."""
    momentum, second = state_of(recorded["proxy"]), state_of(recorded["opt_proxy"])
    for name, theta in before.items():
        step = torch.div(momentum[name], torch.sqrt(second[name]) + flags["fedopt_tau"])
        assert torch.equal(found[name], theta + flags["fedopt_eta"] * step), name


def run_case(golden, case):
    inputs, flags = golden["inputs"], case["fed_args"]
    server = ServerOptimizer(case["fed_alg"], flags, num_clients=flags["num_clients"])
    counts = dict(enumerate(inputs["sample_num_list"]))
    state = state_of(inputs["initial_global"])
    for recorded, clients in zip(case["rounds"], case["clients_per_round"], strict=True):
        index = recorded["round_idx"]
        local = {client: state_of(inputs["local_dicts"][index][client]) for client in clients}
        deltas = None
        if case["fed_alg"] == "scaffold":
            deltas = {client: state_of(inputs["auxiliary_delta"][index][client]) for client in clients}
        state = server.aggregate(index, state, local, counts, deltas)
        yield recorded, state, server.state_dict()["slots"]
        state = state_of(recorded["global"])


@pytest.mark.parametrize("number", range(CASES))
def test_aggregation_over_two_rounds_equals_openfedllm_bit_for_bit(golden, number):
    assert len(golden["cases"]) == CASES
    case, before = golden["cases"][number], state_of(golden["inputs"]["initial_global"])
    for recorded, state, slots in run_case(golden, case):
        if case["fed_alg"] in WITH_ROOTS:
            assert_same_to_the_last_bit(state, before, recorded["global"])
            assert_is_the_formula_s(state, before, recorded, case["fed_args"])
            before = state_of(recorded["global"])
        else:
            assert_same_state(state, recorded["global"])
        names = {"global_auxiliary": "control_variate", "proxy": "momentum", "opt_proxy": "second_moment"}
        for theirs, ours in names.items():
            assert (recorded[theirs] is None) == (ours not in slots), (case["fed_alg"], theirs)
            if recorded[theirs] is not None:
                assert_same_state(slots[ours], recorded[theirs])


def test_learning_rates_equal_openfedllms(golden):
    assert len(golden["cosine_learning_rate"]) == 66
    for case in golden["cosine_learning_rate"]:
        found = cosine_learning_rate(case["current_round"], case["total_rounds"], case["initial_lr"], case["min_lr"])
        assert found == case["value"], case


def test_clients_of_a_round_equal_openfedllms_except_for_its_one_digit_clients(golden):
    assert len(golden["get_clients_this_round"]) == 60
    for case in golden["get_clients_this_round"]:
        found = clients_this_round(case["fed_alg"], case["num_clients"], case["sample_clients"], case["round"])
        if case["fed_alg"] == "local12":  # OpenFedLLM takes the last digit, client 2
            assert (found, case["clients"]) == ([12], [2])
        else:
            assert found == case["clients"], case


def test_rows_of_a_round_equal_openfedllms(golden):
    assert len(golden["get_dataset_this_round"]) == 12
    for case in golden["get_dataset_this_round"]:
        found = rows_this_round(
            case["len_dataset"],
            case["round"],
            case["batch_size"],
            case["gradient_accumulation_steps"],
            case["max_steps"],
        )
        assert found == case["indices"], case
