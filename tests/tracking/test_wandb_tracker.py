"""The W&B tracker against a recording stand-in, and every way in which W&B can be absent."""

import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedbias_plugin.tracking import wandb_tracker
from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import build_trackers
from fedbias_plugin.tracking.wandb_tracker import WandbTracker, import_wandb

pytestmark = pytest.mark.usefixtures("machine_without_wandb")

Make = Callable[[int], RoundRecord]
MakeRun = Callable[..., RunInfo]
KEY = "0123456789" * 4


class FakeWandb:
    """Records what it is asked; ``broken`` names the call that raises."""

    def __init__(self, broken: str = "", url: str = "https://wandb.example.org/run") -> None:
        self.broken, self.url = broken, url
        self.inits: list[dict[str, Any]] = []
        self.metrics: list[tuple[Any, ...]] = []
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.finished: list[int] = []
        self.torn_down = 0
        self.resumed = False

    def Settings(self, **settings: Any) -> dict[str, Any]:
        if self.broken == "old settings" and "finish_timeout" in settings:
            raise ValueError("extra fields not permitted")
        return settings

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:
        return SimpleNamespace(columns=columns, data=data)

    def init(self, **settings: Any) -> "FakeWandb":
        self.inits.append(settings)
        if self.broken == f"init {settings['mode']}":
            raise TimeoutError("no answer\nfrom the server")
        self.dir = str(Path(settings["dir"]) / "wandb" / "offline-run-1" / "files")
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, payload: dict[str, Any]) -> None:
        if self.broken == "log":
            raise ConnectionError("broken pipe")
        self.logged.append(payload)

    def finish(self, exit_code: int = 0) -> None:
        if self.broken == "finish":
            raise TimeoutError("Timed out finishing run.")
        self.finished.append(exit_code)

    def teardown(self, exit_code: int = 0) -> None:
        self.torn_down += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setattr(wandb_tracker, "import_wandb", lambda: fake)
    return fake


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login and a server that answers."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_tracker, "unreachable_reason", lambda url, timeout: None)


def track(run: RunInfo, make_record: Make, rounds: int = 3, tracker: WandbTracker | None = None) -> WandbTracker:
    tracker = tracker or WandbTracker()
    tracker.start(run)
    for number in range(rounds):
        tracker.log_round(make_record(number))
    tracker.finish({"config": {"a": 1}, "delta": {"crows_pairs": 4.0}})
    return tracker


def test_one_run_is_set_up_with_round_as_the_axis_of_everything(
    fake: FakeWandb, make_run: MakeRun, make_record: Make, tmp_path: Path
) -> None:
    track(make_run(), make_record)
    (settings,) = fake.inits
    assert settings["group"] == "1B2C"
    assert settings["job_type"] == "fedavg-bama"
    assert settings["tags"] == ["tiny"]
    assert settings["config"] == {"num_rounds": 2, "bama_alpha": 0.5, "path": str(tmp_path)}
    assert settings["settings"]["console"] == "off"
    assert settings["settings"]["init_timeout"] == 30.0
    assert fake.metrics == [("round", None), ("*", "round")]
    assert fake.summary == {"delta": {"crows_pairs": 4.0}}
    assert fake.finished == [0]


def test_there_is_one_log_call_a_round_and_tables_at_the_first_and_last(
    fake: FakeWandb, make_run: MakeRun, make_record: Make
) -> None:
    track(make_run(), make_record)
    assert [payload["round"] for payload in fake.logged] == [0, 1, 2]
    tables = [sorted(key for key in payload if key.startswith("categories")) for payload in fake.logged]
    assert tables == [["categories/first"], [], ["categories/last"]]
    assert fake.logged[2]["categories/last"].data[0] == [2, "crows_pairs", "gender", 54.0, 40.0, 60.0, None, 40]


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
    assert not any(key.startswith("categories/first") for payload in fake.logged for key in payload)
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
    tracker = WandbTracker()
    tracker.start(make_run())
    tracker.log_round(make_record(0))
    tracker.abort("out of memory")
    assert fake.finished == [1]
    assert fake.summary == {"aborted": "out of memory"}
