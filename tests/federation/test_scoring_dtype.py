"""--scoring_dtype in a run: chosen once, recorded, kept by a resumed run."""

from __future__ import annotations

import json

import pytest
import torch

from fedbias_plugin.metrics import scoring_choice
from fedbias_plugin.scoring import precision
from tests.federation.test_session import make_session, model, one_round

__all__ = ["make_session", "model"]


def units(monkeypatch, missing):
    monkeypatch.setattr(precision, "units_missing", lambda model: missing)


def scoring_of(folder):
    return json.loads((folder / "run.json").read_text())["scoring"]


@pytest.mark.parametrize(("missing", "dtype"), [("", "bfloat16"), ("no units here", "float32")])
def test_auto_is_decided_at_round_0_recorded_and_kept(missing, dtype, make_session, model, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring_choice, "MOST_FLIPS", 101.0)
    monkeypatch.setattr(scoring_choice, "LARGEST_DIFFERENCE", 100.0)
    units(monkeypatch, missing)
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    session = make_session(aggregation="bama", scoring_dtype="auto")
    session.after_aggregation(0, model=model[0], tokenizer=model[1])
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())
    found = scoring_of(tmp_path / "run")
    assert (found["asked"], found["dtype"]) == ("auto", dtype)
    assert set(found["trial"]) == (set() if missing else {"crows_pairs", "stereoset"})
    assert missing in found["reason"]
    one_round(session, *model)
    session.after_aggregation(1, model=model[0], tokenizer=model[1])
    state = json.loads(json.dumps(session.state_dict()))
    units(monkeypatch, "" if missing else "another machine")  # where auto would choose otherwise
    resumed = make_session(aggregation="bama", scoring_dtype="auto")
    resumed.load_state_dict(state)
    assert resumed._live._scorer(*model).dtype == dtype
    assert resumed.state_dict()["scoring"] == state["scoring"] == found


def test_by_default_nothing_is_tried_and_the_models_type_is_recorded(make_session, model, tmp_path):
    make_session().after_aggregation(0, model=model[0], tokenizer=model[1])
    expected = {"asked": "float32", "dtype": "float32", "reason": "asked for", "trial": {}}
    assert scoring_of(tmp_path / "run") == expected


def test_clients_weights_in_bfloat16_are_near_those_in_float32(make_session, model):
    weights = []
    for dtype in ("float32", "bfloat16"):
        session = make_session(aggregation="bama", scoring_dtype=dtype)
        session.after_aggregation(0, model=model[0], tokenizer=model[1])
        one_round(session, *model)
        assert session._live.choice.dtype == dtype
        weights.append(torch.tensor([session.weights[client] for client in range(3)]))
    assert weights[0].sum() == pytest.approx(1.0)
    assert (weights[0] - weights[1]).abs().max() < 0.1


def test_evaluate_says_what_it_scored_in(random_model, small_data, tmp_path):
    from fedbias_plugin.cli.main import main

    flags = ["--model_name_or_path", random_model, "--data_dir", small_data, "--scoring_dtype", "bfloat16"]
    assert main(["evaluate", *map(str, flags), "--output", str(tmp_path / "bias.json")]) == 0
    metadata = json.loads((tmp_path / "bias.json").read_text())["metadata"]
    assert {one["scoring"]["dtype"] for one in metadata.values()} == {"bfloat16"}
