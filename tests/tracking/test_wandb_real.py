"""The W&B tracker with the installed package: what it records offline, and how it gets there without a server."""

import http.server
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedbias_plugin.tracking.jsonl import JsonlTracker, read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import TrackerGroup, build_trackers
from fedbias_plugin.tracking.wandb_tracker import WandbTracker
from tests.tracking.wandb_records import items, kinds, offline_records, summary_of

pytestmark = pytest.mark.usefixtures("machine_without_wandb")

Make = Callable[[int], RoundRecord]
MakeRun = Callable[..., RunInfo]
KEY = "0123456789" * 4


@pytest.fixture
def refusing_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that answers 401 to every request, set as W&B's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "user is not logged in"}]}')

        do_HEAD = do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{httpd.server_address[1]}")
        yield
        httpd.shutdown()


def track(run: RunInfo, make_record: Make, rounds: int = 3) -> WandbTracker:
    tracker = WandbTracker()
    group = TrackerGroup(JsonlTracker(), [tracker])
    group.start(run)
    for number in range(rounds):
        group.log_round(make_record(number))
    group.finish({"config": {"a": 1}, "warnings": []})
    return tracker


@pytest.fixture
def real_wandb() -> Iterator[None]:
    """The installed package, which keeps the server and login of its first use until it is torn down."""
    wandb = pytest.importorskip("wandb", reason="the wandb package is not installed")
    wandb.teardown()
    yield
    wandb.teardown()


def test_the_real_package_records_curves_and_a_summary_offline(
    real_wandb: None, make_run: MakeRun, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    track(run, make_record)
    records = offline_records(Path(run.output_dir))
    (folder,) = Path(run.output_dir).glob("wandb/offline-run-*")
    assert f"wandb sync {folder}\n" in capsys.readouterr().out
    history = [items(row.item) for row in kinds(records, "history")]
    assert [(row["round"], row["bias/crows_pairs"]) for row in history] == [(0, 51.0), (1, 52.0), (2, 53.0)]
    assert history[1]["client_4/weight"] == 0.8
    assert (history[2]["categories/by_round/nrows"], history[2]["categories/by_round/ncols"]) == (9, 13)
    (opened,) = kinds(records, "run")
    assert (opened.project, opened.run_group, opened.job_type) == ("fedbias", "1B2C", "fedavg-bama")
    assert list(opened.tags) == ["tiny"]
    assert items(opened.config.update)["bama_alpha"] == 0.5
    assert items(opened.config.update)["poisoned_clients"] == [0]
    assert ("*", "round") in [(metric.glob_name, metric.step_metric) for metric in kinds(records, "metric")]
    summary = summary_of(records)
    assert summary["final/crows_pairs/delta"] == 3.0
    assert summary["bias/crows_pairs"] == 53.0


def test_an_offline_run_that_was_cut_off_goes_on_under_its_id_and_its_newest_folder_is_whole(
    real_wandb: None, make_run: MakeRun, make_record: Make
) -> None:
    run = make_run()
    before = build_trackers("jsonl,wandb")
    before.start(run)
    before.log_round(make_record(0))
    before.log_round(make_record(1))
    state = before.state_dict()
    before.log_round(make_record(2))  # which the checkpoint does not know
    before.abort("killed")
    time.sleep(1.1)  # W&B names folders by the second
    after = build_trackers("jsonl,wandb")
    after.load_state_dict(state)
    after.start(run)
    after.log_round(make_record(2))
    after.finish({})
    records = offline_records(Path(run.output_dir))
    (opened,) = kinds(records, "run")
    assert opened.run_id == state["wandb"]["run_id"]
    assert [items(row.item)["round"] for row in kinds(records, "history")] == [0, 1, 2]
    assert [record.round for record in read_rounds(Path(run.output_dir))] == [0, 1, 2]


def test_online_without_login_goes_offline_without_asking(
    real_wandb: None, make_run: MakeRun, make_record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(wandb_mode="online")
    start = time.monotonic()
    track(run, make_record)
    assert time.monotonic() - start < 30
    assert "no login found" in caplog.text
    assert len(kinds(offline_records(Path(run.output_dir)), "history")) == 3


def test_online_with_a_login_and_no_server_goes_offline_quickly(
    real_wandb: None,
    make_run: MakeRun,
    make_record: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    run = make_run(wandb_mode="online")
    start = time.monotonic()
    track(run, make_record)
    assert time.monotonic() - start < 30
    assert "http://127.0.0.1:1 cannot be reached" in caplog.text
    assert len(kinds(offline_records(Path(run.output_dir)), "history")) == 3


def test_a_login_that_the_server_refuses_goes_offline_with_one_line(
    real_wandb: None,
    make_run: MakeRun,
    make_record: Make,
    monkeypatch: pytest.MonkeyPatch,
    refusing_server: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = make_run(wandb_mode="online")
    start = time.monotonic()
    monkeypatch.setattr(WandbTracker, "init_timeout", 10.0)
    track(run, make_record)
    assert time.monotonic() - start < 60
    ours = [record for record in caplog.records if not record.name.startswith("wandb")]
    (line,) = [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
    assert "the online run did not start" in line
    assert len(kinds(offline_records(Path(run.output_dir)), "history")) == 3
