"""The bytes of a round by definition."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedbias_plugin.federation.ledger import Ledger, is_federated, payload_of, state_name
from fedbias_plugin.tracking.numbers import record_numbers, run_measures
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord
from fedbias_plugin.tracking.series import series
from fedbias_plugin.updates.base import Update

PROMPT = {"prompt": torch.zeros(20, 768)}
"""Twenty rows of 768 float32: 61,440 bytes."""


def test_an_update_costs_the_bytes_of_its_tensors_and_of_what_goes_beside_it():
    control = {"c": torch.zeros(3, dtype=torch.bfloat16)}
    update = Update(0, PROMPT, 5, sent={"control_delta": control}, received={"control_variate": 6})
    assert payload_of(update, PROMPT, "adapter") == {
        "sent": {"adapter": 61440, "control_delta": 6},
        "received": {"adapter": 61440, "control_variate": 6},
    }


def test_a_stage_says_what_stands_for_the_state():
    update = Update(0, PROMPT, 5, payload={"prompt rows": 15360, "bitmap": 3})
    assert payload_of(update, PROMPT, "adapter")["sent"] == {"prompt rows": 15360, "bitmap": 3}
    assert payload_of(update, PROMPT, "adapter")["received"] == {"adapter": 61440}


def test_a_ledger_adds_up_rounds_and_goes_on_after_a_resume():
    def of(*clients):
        sides = {"sent": {"adapter": 10}, "received": {"adapter": 40}}
        return {client: ClientRecord(None, 1, payload=sides) for client in clients}

    ledger = Ledger()
    assert ledger.add({}) == {}  # round 0
    sums = {"sent": {"adapter": 20}, "received": {"adapter": 80}, "sent_total": 20, "received_total": 80}
    assert ledger.add(of(0, 1)) == sums
    resumed = Ledger()
    resumed.load_state_dict(ledger.state_dict())
    assert resumed.add(of(2)) == ledger.add(of(2))
    assert resumed.state_dict() == {"sent": 30, "received": 120}


@pytest.mark.parametrize(
    ("clients", "fed_alg", "counts"), [(3, "fedavg", True), (1, "fedavg", False), (3, "local1", False)]
)
def test_nothing_travels_where_one_trains_alone(clients, fed_alg, counts):
    assert is_federated(SimpleNamespace(num_clients=clients, fed_alg=fed_alg)) is counts
    assert state_name(SimpleNamespace()) == "model"


def test_records_keep_the_bytes_and_say_nothing_where_nothing_travelled():
    client = ClientRecord(0.0, 4, payload={"sent": {"prompt rows": 8, "bitmap": 1}, "received": {"adapter": 9}})
    own = Ledger().add({0: client})
    records = [
        RoundRecord(0, GlobalRecord()),
        *(RoundRecord(n, GlobalRecord(), {0: client}, payload=own) for n in (1, 2)),
    ]
    assert [RoundRecord.from_json(one.to_json()) for one in records] == records
    assert "payload" not in records[0].to_json()
    numbers = {(row["client"], row["metric"]): row["value"] for row in record_numbers(records[1])}
    assert numbers[-1, "payload/total"] == 18
    assert numbers[-1, "payload/sent/bitmap"] == numbers[0, "payload/sent/bitmap"] == 1
    assert series(records[1])["run/payload_sent_total"] == 9
    assert run_measures(records)["payload/sent/bitmap"] == 2


def test_a_damaged_ledger_is_refused():
    line = RoundRecord(1, GlobalRecord(), payload={"sent": {"adapter": 1}, "sent_total": 1}).to_json()
    line["payload"]["sent"]["adapter"] = "much"
    with pytest.raises(ValueError, match="'adapter' must be a whole number"):
        RoundRecord.from_json(line)
