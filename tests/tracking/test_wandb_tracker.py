"""The W&B tracker against a recording stand-in, and every way in which W&B can be absent."""

import importlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedbias_plugin.tracking import wandb_tracker
from fedbias_plugin.tracking.jsonl import JsonlTracker, read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import TrackerGroup, build_trackers
from fedbias_plugin.tracking.wandb_server import import_wandb
from fedbias_plugin.tracking.wandb_tracker import CATEGORIES, WandbTracker
from tests.tracking.fake_wandb import FakeWandb

pytestmark = pytest.mark.usefixtures("machine_without_wandb")

Make = Callable[[int], RoundRecord]
MakeRun = Callable[..., RunInfo]
KEY = "0123456789" * 4


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setattr(wandb_tracker, "import_wandb", lambda: fake)
    return fake


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login and a server that answers."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_tracker, "unreachable_reason", lambda url: None)


def track(run: RunInfo, make_record: Make, rounds: int = 3, tracker: WandbTracker | None = None) -> WandbTracker:
    tracker = tracker or WandbTracker()
    group = TrackerGroup(JsonlTracker(), [tracker])
    group.start(run)
    for number in range(rounds):
        group.log_round(make_record(number))
    final = {"round": 2, "harness:arc": {"value": 0.5, "definition": "acc of arc"}, "rouge_l": None, "heldout_loss": {}}
    group.finish({"config": {"a": 1}, "warnings": ["low: 54 (round 1)"], "final": final})
    return tracker


def test_one_run_is_set_up_with_round_as_the_axis_of_everything(
    fake: FakeWandb, make_run: MakeRun, make_record: Make, tmp_path: Path
) -> None:
    track(make_run(), make_record)
    (settings,) = fake.inits
    assert settings["group"] == "1B2C"
    assert settings["job_type"] == "fedavg-bama"
    assert settings["tags"] == ["tiny"]
    assert settings["config"] == {
        "num_rounds": 2,
        "bama_alpha": 0.5,
        "path": str(tmp_path),
        "poisoned_clients": [0],
        "poisoned_shares": [1.0],
    }
    assert settings["settings"]["console"] == "off"
    assert settings["settings"]["init_timeout"] == 30.0
    assert fake.metrics["round"] == (None, None)
    assert fake.metrics["*"] == ("round", None)
    assert fake.summary["warnings"] == ["low: 54 (round 1)"]
    assert "config" not in fake.summary
    assert [name for name in fake.summary if name.startswith("definition")] == ["definition/harness:arc"]
    assert fake.finished == [0]


def test_there_is_one_log_call_a_round_and_a_table_of_all_categories_at_the_last(
    fake: FakeWandb, make_run: MakeRun, make_record: Make
) -> None:
    track(make_run(), make_record)
    assert [payload["round"] for payload in fake.logged] == [0, 1, 2]
    assert [CATEGORIES in payload for payload in fake.logged] == [False, False, True]
    by_round = fake.logged[2][CATEGORIES]
    assert by_round.columns[-2:] == ["delta", "label"]
    assert [row[0] for row in by_round.data] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    last = [2, "stereoset", "race", 42.0, 41.0, 61.0, 90.0, 30, 80.0, None, 7, 8.0, "stereoset: race"]
    assert by_round.data[-1] == last


def test_a_resumed_experiment_sends_the_earlier_rounds_first(
    fake: FakeWandb, make_run: MakeRun, make_record: Make
) -> None:
    run = make_run()
    before = build_trackers("jsonl")
    before.start(run)
    for number in range(3):
        before.log_round(make_record(number))
    resumed = build_trackers("jsonl,wandb")
    resumed.start(run)
    resumed.log_round(make_record(2))
    assert [payload["round"] for payload in fake.logged] == [0, 1, 2]


@pytest.mark.parametrize(("on_server", "sent"), [(0, [1, 2]), (1, [2]), (2, [3])])
def test_a_run_goes_on_under_its_id_and_the_server_gets_every_round_once(
    fake: FakeWandb, online: None, make_run: MakeRun, make_record: Make, on_server: int, sent: list[int]
) -> None:
    run = make_run(wandb_mode="online")
    first = build_trackers("jsonl,wandb")
    first.start(run)
    first.log_round(make_record(0))
    first.log_round(make_record(1))
    state = first.state_dict()
    assert state["wandb"] == {"run_id": fake.inits[0]["id"]}
    fake.resumed, fake.summary, fake.logged = True, {"round": on_server, "aborted": "out of memory"}, []
    second = build_trackers("jsonl,wandb")
    second.load_state_dict(state)
    second.start(run)
    assert (fake.inits[1]["id"], fake.inits[1]["resume"]) == (fake.inits[0]["id"], "allow")
    second.log_round(make_record(2))
    if on_server == 2:
        second.log_round(make_record(3))
    assert [payload["round"] for payload in fake.logged] == sent
    second.finish({})
    assert fake.summary["aborted"] is None


def test_offline_mode_prints_the_exact_sync_line(
    fake: FakeWandb, make_run: MakeRun, make_record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "with space"
    track(make_run(output_dir=folder), make_record)
    line = capsys.readouterr().out.strip()
    command = line[line.index("wandb sync") :]
    assert shlex.split(command) == ["wandb", "sync", str(folder / "wandb" / "offline-run-1")]


def test_online_mode_prints_the_address_of_the_run(
    fake: FakeWandb, online: None, make_run: MakeRun, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    track(make_run(wandb_mode="online"), make_record)
    assert [settings["mode"] for settings in fake.inits] == ["online"]
    assert capsys.readouterr().out == "W&B: https://wandb.example.org/run\n"


def test_an_online_start_that_fails_is_forgotten_and_recorded_offline(
    fake: FakeWandb, online: None, make_run: MakeRun, make_record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    fake.broken = "init online"
    track(make_run(wandb_mode="online"), make_record)
    assert [settings["mode"] for settings in fake.inits] == ["online", "offline"]
    assert fake.torn_down == 1
    assert len(fake.logged) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "W&B goes offline: the online run did not start (TimeoutError: no answer from the server)."
    ]


def test_older_versions_that_refuse_new_settings_still_start(
    fake: FakeWandb, make_run: MakeRun, make_record: Make
) -> None:
    fake.broken = "old settings"
    track(make_run(), make_record)
    assert fake.inits[0]["settings"] == {"init_timeout": 30.0, "console": "off", "silent": True}


def test_an_upload_that_does_not_end_costs_one_line_with_the_sync_command(
    fake: FakeWandb, online: None, make_run: MakeRun, make_record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    fake.broken = "finish"
    track(make_run(wandb_mode="online"), make_record)
    assert "To upload the rest: wandb sync " in caplog.text


def test_a_failing_wandb_never_loses_a_number(
    fake: FakeWandb, make_run: MakeRun, make_record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    fake.broken = "log"
    group = build_trackers("jsonl,wandb")
    run = make_run()
    group.start(run)
    for number in range(3):
        group.log_round(make_record(number))
    group.finish({})
    assert [record.round for record in read_rounds(run.output_dir)] == [0, 1, 2]
    assert len(caplog.records) == 1
    assert "'wandb' failed" in caplog.text


def test_disabled_mode_does_not_even_import_wandb(
    make_run: MakeRun, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise AssertionError("imported")

    monkeypatch.setattr(wandb_tracker, "import_wandb", fail)
    track(make_run(wandb_mode="disabled"), make_record)


def test_a_missing_package_costs_its_feature_and_one_line(
    make_run: MakeRun, make_record: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    track(make_run(), make_record)
    assert [record.getMessage() for record in caplog.records] == [
        "W&B is off: the package wandb is not installed (pip install -U wandb). metrics.jsonl has every number."
    ]


def test_a_folder_named_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ImportError, match="wandb is not installed"):
        import_wandb()
    sys.modules.pop("wandb", None)


def test_a_package_that_its_own_dependencies_break_costs_one_line(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb.py").write_text("raise AttributeError('np.float_ was removed')")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    WandbTracker().start(make_run())
    (record,) = caplog.records
    assert "does not import, AttributeError: np.float_ was removed (pip install -U wandb)" in record.getMessage()


def test_an_aborted_run_is_closed_as_failed(fake: FakeWandb, make_run: MakeRun, make_record: Make) -> None:
    group = build_trackers("jsonl,wandb")
    group.start(make_run())
    group.log_round(make_record(0))
    group.abort("out of memory")
    assert fake.finished == [1]
    assert fake.summary["aborted"] == "out of memory"
    assert fake.summary["final/round"] == 0
    assert [artifact.kind for artifact in fake.artifacts] == []


def test_what_wandb_copies_is_kept_with_the_run_and_the_environment_left_as_it_was(
    fake: FakeWandb, make_run: MakeRun, make_record: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    tracker = WandbTracker()
    tracker.start(make_run())
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "out" / "wandb")
    tracker.finish({})
    assert "WANDB_DATA_DIR" not in os.environ
    monkeypatch.setenv("WANDB_DATA_DIR", "/elsewhere")
    track(make_run(), make_record)
    assert os.environ["WANDB_DATA_DIR"] == "/elsewhere"


@pytest.mark.parametrize(
    ("variable", "argument"),
    [("WANDB_NAME", "name"), ("WANDB_RUN_GROUP", "group"), ("WANDB_JOB_TYPE", "job_type"), ("WANDB_TAGS", "tags")],
)
def test_what_the_user_calls_a_run_in_the_environment_wins(
    fake: FakeWandb, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, variable: str, argument: str
) -> None:
    WandbTracker().start(make_run())
    monkeypatch.setenv(variable, "mine")
    WandbTracker().start(make_run())
    assert argument in fake.inits[0]
    assert argument not in fake.inits[1]  # so that W&B takes the variable
    assert "notes" not in fake.inits[1]


def test_the_agent_of_a_sweep_chooses_the_id(
    fake: FakeWandb, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    WandbTracker().start(make_run())
    assert fake.inits[0]["id"] == "fromagent"


def test_an_artifact_that_fails_costs_the_artifacts_and_nothing_else(
    fake: FakeWandb, make_run: MakeRun, make_record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    fake.broken = "artifact"
    run = make_run()
    for name in ("checkpoint-1", "adapter"):
        save_adapter(Path(run.output_dir) / name)
    track(run, make_record)
    assert len(fake.logged) == 3
    assert fake.finished == [0]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "W&B gets no further artifacts of this run (OSError: disk full)."


def save_adapter(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "training_args.bin", "README.md"):
        (folder / name).write_text(name)


def test_every_saved_round_is_an_artifact_once_it_is_whole_and_the_final_one_at_the_end(
    fake: FakeWandb, make_run: MakeRun, make_record: Make
) -> None:
    run = make_run(run_name="fedavg 1B2C bama seed 1")
    output, tracker = Path(run.output_dir), WandbTracker()
    tracker.start(run)
    for number in range(3):
        tracker.log_round(make_record(number))
        save_adapter(output / f"checkpoint-{number}")
        assert [artifact.aliases[0] for artifact in fake.artifacts] == [f"round-{n}" for n in range(number)]
    save_adapter(output / "adapter")
    (output / "run.json").write_text("{}")
    (output / "other.json").write_text("{}")
    tracker.finish({})
    identifier = fake.inits[0]["id"]
    adapter, files = f"fedavg-1B2C-bama-seed-1-{identifier}-adapter", f"fedavg-1B2C-bama-seed-1-{identifier}-files"
    assert [(artifact.name, artifact.kind, artifact.aliases) for artifact in fake.artifacts] == [
        (adapter, "adapter", ["round-0", "latest"]),
        (adapter, "adapter", ["round-1", "latest"]),
        (adapter, "adapter", ["round-2", "latest", "final"]),  # which checkpoint-2 holds too
        (files, "run-files", ["latest"]),
    ]
    assert fake.artifacts[0].files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert fake.artifacts[0].metadata == {"round": 0}
    assert fake.artifacts[-1].files == ["run.json"]
