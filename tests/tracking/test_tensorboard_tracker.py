"""The TensorBoard tracker: its event files read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.series import highlights, series
from fedbias_plugin.tracking.tracker import build_trackers

Make = Callable[[int], RoundRecord]
MakeRun = Callable[..., RunInfo]


@pytest.fixture
def events() -> Callable[[RunInfo], Any]:
    """``events(run)`` -> what TensorBoard loads from the run's folder."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def load(run: RunInfo) -> Any:
        accumulator = module.EventAccumulator(str(Path(run.output_dir) / "tensorboard"), size_guidance={"scalars": 0})
        return accumulator.Reload()

    return load


def text_of(loaded: Any, tag: str) -> str:
    (event,) = loaded.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_every_curve_is_a_scalar_at_its_round_and_the_summary_a_text(
    make_run: MakeRun, make_record: Make, events: Callable[[RunInfo], Any]
) -> None:
    run = make_run()
    group = build_trackers("jsonl,tensorboard")
    group.start(run)
    for number in range(3):
        group.log_round(make_record(number))
    group.finish({})
    loaded = events(run)
    found = {tag: {event.step: event.value for event in loaded.Scalars(tag)} for tag in loaded.Tags()["scalars"]}
    for record in read_rounds(run.output_dir):
        for key, value in series(record).items():
            assert found[key].pop(record.round) == pytest.approx(value, rel=1e-6), key  # float32
    assert found["categories/crows_pairs/gender"] == {0: 52.0, 1: 53.0, 2: 54.0}
    assert found["categories/stereoset/race"] == {0: 44.0, 1: 43.0, 2: 42.0}
    assert {tag for tag, steps in found.items() if steps and not tag.startswith("categories/")} == set()
    summary = json.loads(text_of(loaded, "summary"))
    assert summary == highlights(read_rounds(run.output_dir))
    assert summary["final/stereoset/delta"] == 7.0


def test_configuration_and_names_are_texts_in_which_nothing_is_markup(
    make_run: MakeRun, make_record: Make, events: Callable[[RunInfo], Any]
) -> None:
    run = make_run(config={"num_rounds": 2, "note": "<script>alert(1)</script>\n# title"})
    group = build_trackers("tensorboard")
    group.start(run)
    group.log_round(make_record(0))
    group.abort("killed\n# by hand")
    loaded = events(run)
    lines = text_of(loaded, "config").split("\n")
    assert all(line.startswith("    ") for line in lines)
    assert json.loads("\n".join(lines)) == {**run.config, "poisoned_clients": [0], "poisoned_shares": [1.0]}
    assert '"tags": [' in text_of(loaded, "run")
    assert text_of(loaded, "aborted") == "    killed\n    # by hand"


def test_a_run_that_goes_on_has_every_step_once(
    make_run: MakeRun, make_record: Make, events: Callable[[RunInfo], Any]
) -> None:
    run = make_run()
    before = build_trackers("jsonl,tensorboard")
    before.start(run)
    before.log_round(make_record(0))
    before.log_round(make_record(1))
    state = before.state_dict()
    lost = make_record(2)
    lost.global_.bias_score = 99.0
    before.log_round(lost)  # which the checkpoint does not know; the process is killed here
    after = build_trackers("jsonl,tensorboard")
    after.load_state_dict(state)
    after.start(run)
    after.log_round(make_record(2))
    after.finish({})
    scores = [(event.step, event.value) for event in events(run).Scalars("bias/bias_score")]
    assert scores == [(0, 3.25), (1, 3.25), (2, 3.25)]


def test_a_tracker_that_joins_a_resumed_run_shows_its_earlier_rounds(
    make_run: MakeRun, make_record: Make, events: Callable[[RunInfo], Any]
) -> None:
    run = make_run()
    before = build_trackers("jsonl")
    before.start(run)
    before.log_round(make_record(0))
    state = before.state_dict()
    after = build_trackers("jsonl,tensorboard")
    after.load_state_dict(state)
    after.start(run)
    after.log_round(make_record(1))
    assert [event.step for event in events(run).Scalars("bias/crows_pairs")] == [0, 1]  # flushed, not closed
    after.finish({})


def test_a_missing_package_costs_its_feature_and_one_line(
    make_run: MakeRun, make_record: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in list(sys.modules):
        if name == "tensorboard" or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    run = make_run()
    group = build_trackers("jsonl,tensorboard")
    with caplog.at_level(logging.WARNING):
        group.start(run)
        group.log_round(make_record(0))
        group.finish({})
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard is off: the package tensorboard is not installed (pip install tensorboard). "
        "metrics.jsonl has every number."
    ]
    assert len(read_rounds(run.output_dir)) == 1
