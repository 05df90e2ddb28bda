"""The W&B tracker with the installed package: what it records offline, and how it gets there without a server."""

import http.server
import json
import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import build_trackers
from fedbias_plugin.tracking.wandb_tracker import WandbTracker

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
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{httpd.server_address[1]}")
        yield
        httpd.shutdown()


def track(run: RunInfo, make_record: Make, rounds: int = 3, tracker: WandbTracker | None = None) -> WandbTracker:
    tracker = tracker or WandbTracker()
    tracker.start(run)
    for number in range(rounds):
        tracker.log_round(make_record(number))
    tracker.finish({"config": {"a": 1}, "delta": {"crows_pairs": 4.0}})
    return tracker


@pytest.fixture
def real_wandb() -> Iterator[None]:
    """The installed package, which keeps the server and login of its first use until it is torn down."""
    wandb = pytest.importorskip("wandb", reason="the wandb package is not installed")
    wandb.teardown()
    yield
    wandb.teardown()


def recorded(path: Path) -> list[Any]:
    """Protocol records of a ``.wandb`` file: a LevelDB log behind a header of 7 bytes, in blocks of 32 KiB."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="this wandb has no readable records")
    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        size, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if kind == 0:  # padding at the end of a block
            position += left
            continue
        if position + 7 + size > len(data):  # not yet whole
            break
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # full, or last part
            record = pb.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def offline_records(folder: Path) -> list[Any]:
    """What the newest offline run below ``folder`` recorded; W&B's own process may end its file a little later."""
    path = max(folder.glob("wandb/offline-run-*/run-*.wandb"))
    patience = time.monotonic() + 20
    while True:
        records = recorded(path)
        if kinds(records, "exit") or time.monotonic() > patience:
            return records
        time.sleep(0.05)


def kinds(records: list[Any], kind: str) -> list[Any]:
    """The records of one kind."""
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def items(entries: Any) -> dict[str, Any]:
    """Keys and values; versions differ in whether they nest keys or values."""
    flat: dict[str, Any] = {}
    for entry in entries:
        key, value = entry.key or "/".join(entry.nested_key), json.loads(entry.value_json)
        flat |= {f"{key}/{part}": leaf for part, leaf in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def test_the_real_package_records_every_number_offline(
    real_wandb: None, make_run: MakeRun, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    track(run, make_record)
    records = offline_records(Path(run.output_dir))
    (folder,) = Path(run.output_dir).glob("wandb/offline-run-*")
    assert f"wandb sync {folder}\n" in capsys.readouterr().out
    history = [items(row.item) for row in kinds(records, "history")]
    assert [(row["round"], row["global/crows_pairs/score"]) for row in history] == [(0, 51.0), (1, 52.0), (2, 53.0)]
    assert history[1]["client/4/weight"] == 0.8
    assert history[2]["global/stereoset/ci95_low"] == 39.0
    assert history[0]["categories/first/nrows"] == 3
    assert history[2]["categories/last/ncols"] == 8
    (opened,) = kinds(records, "run")
    assert (opened.project, opened.run_group, opened.job_type) == ("fedbias", "1B2C", "fedavg-bama")
    assert list(opened.tags) == ["tiny"]
    assert items(opened.config.update)["bama_alpha"] == 0.5
    assert ("*", "round") in [(metric.glob_name, metric.step_metric) for metric in kinds(records, "metric")]
    summary: dict[str, Any] = {}
    for update in kinds(records, "summary"):
        summary |= items(update.update)
    assert summary["delta/crows_pairs"] == 4.0
    assert summary["global/crows_pairs/score"] == 53.0


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
    track(run, make_record, tracker=WandbTracker(init_timeout=10))
    assert time.monotonic() - start < 60
    ours = [record for record in caplog.records if not record.name.startswith("wandb")]
    (line,) = [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
    assert "the online run did not start" in line
    assert len(kinds(offline_records(Path(run.output_dir)), "history")) == 3
