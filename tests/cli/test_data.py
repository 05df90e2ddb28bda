import hashlib
import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedbias_plugin.cli import main as cli
from fedbias_plugin.cli.data import list_datasets
from fedbias_plugin.data import catalog, download
from fedbias_plugin.data.known import KNOWN
from fedbias_plugin.known_dataset import DataFile, Form, KnownDataset

CONTENT = b"sent_more,sent_less\n" + b"left,right\n" * 20_000


@pytest.fixture(autouse=True)
def machine_without_data(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)
    monkeypatch.setenv("FEDBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    mini = tmp_path / "mini"
    mini.mkdir()
    for name in ("clean.jsonl", "biased.jsonl"):
        (mini / name).write_text('{"a": "1"}\n{"a": "2"}\n')
    (mini / "crows_pairs.csv").write_text("a,b\n1,2\n")
    (mini / "stereoset.json").write_text('{"data": {"intrasentence": [{}, {}], "intersentence": [{}]}}')
    monkeypatch.setattr(catalog, "MINI_DATA", mini)


class Home(http.server.BaseHTTPRequestHandler):
    """``/good`` is the file, ``/short`` ends early, everything else is not found."""

    def do_GET(self):
        if self.path not in ("/good", "/short"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/good" else CONTENT[:100])

    def log_message(self, *_):
        pass


@pytest.fixture
def home():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Home)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(monkeypatch):
    """Publish a data set ``pairs`` at an address."""

    def publish(url: str, sha256: tuple[str, ...] = (hashlib.sha256(CONTENT).hexdigest(),)) -> None:
        form = Form((DataFile("pairs/pairs.csv", sha256=sha256),), rows=20_000, url=url)
        dataset = KnownDataset("pairs", "crows_pairs", "Pairs", "CC0", "a test", (form,), warning="Made up.")
        monkeypatch.setitem(KNOWN, "pairs", dataset)

    return publish


def fedbias(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["data", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetch_puts_the_checked_file_where_the_catalog_finds_it(capsys, tmp_path, home, published):
    published(f"{home}/good")
    code, out, _ = fedbias(capsys, "fetch", "pairs")
    assert code == 0
    assert files_below(tmp_path / "cache") == ["pairs/pairs.csv"]
    assert (tmp_path / "cache/pairs/pairs.csv").read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in out
    assert "CC0" in out
    assert "Made up." in out
    assert catalog.locate("pairs").origin == "fetched"


def test_fetch_leaves_a_known_release_alone_and_replaces_another_file(capsys, tmp_path, home, published):
    published(f"{home}/good")
    target = tmp_path / "own" / "pairs" / "pairs.csv"
    assert fedbias(capsys, "fetch", "pairs", "--data_dir", str(tmp_path / "own"))[0] == 0
    published(f"{home}/gone")
    code, out, _ = fedbias(capsys, "fetch", "pairs", "--data_dir", str(tmp_path / "own"))
    assert (code, out) == (0, f"pairs: already at {target}\n")
    target.write_text("damaged")
    published(f"{home}/good")
    assert fedbias(capsys, "fetch", "pairs", "--data_dir", str(tmp_path / "own"))[0] == 0
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "sha256", "message"),
    [
        ("good", ("0" * 64,), "is not the known release; nothing was kept"),
        ("gone", (), "answered 404"),
        ("short", (), "was cut short: 100 of 220,020 bytes"),
    ],
)
def test_a_failed_fetch_says_why_and_leaves_what_was_there(capsys, tmp_path, home, published, page, sha256, message):
    published(f"{home}/{page}", sha256)
    target = tmp_path / "cache" / "pairs" / "pairs.csv"
    code, _, err = fedbias(capsys, "fetch", "pairs")
    assert code == 2
    assert err.startswith("fedbias: error: ")
    assert message in err
    assert f"{home}/{page}" in err
    assert files_below(tmp_path / "cache") == []
    target.write_text("older")
    assert fedbias(capsys, "fetch", "pairs", "--force")[0] == 2
    assert files_below(tmp_path / "cache") == ["pairs/pairs.csv"]
    assert target.read_text() == "older"


def test_an_unreachable_home_names_the_way_by_hand(capsys, tmp_path, published):
    published("http://127.0.0.1:9/pairs.csv")
    code, _, err = fedbias(capsys, "fetch", "pairs")
    assert code == 2
    assert "http://127.0.0.1:9/pairs.csv cannot be reached" in err
    assert f"Download it by hand to {tmp_path / 'cache' / 'pairs' / 'pairs.csv'}" in err


def test_a_target_that_cannot_be_written_is_named(capsys, tmp_path, home, published):
    published(f"{home}/good")
    (tmp_path / "occupied").write_text("a file")
    code, _, err = fedbias(capsys, "fetch", "pairs", "--data_dir", str(tmp_path / "occupied"))
    assert code == 2
    assert "pairs.csv cannot be written" in err


def test_the_hub_mirror_in_the_environment_is_asked_instead_of_the_hub(monkeypatch, tmp_path, home):
    monkeypatch.setenv("HF_ENDPOINT", home)
    path = download.download("https://huggingface.co/good", DataFile("a.csv"), tmp_path / "new")
    assert path.read_bytes() == CONTENT


def test_progress_reports_bytes_received_and_expected(tmp_path, home):
    seen = []
    download.download(f"{home}/good", DataFile("a.csv"), tmp_path, lambda *counts: seen.append(counts))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [received for received, _ in seen] == sorted(received for received, _ in seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fetch", "crows-pair"), "The data set 'crows-pair' is unknown; choose from .*Did you mean 'crows_pairs'"),
        (("fetch", "mini-clean"), "mini-clean comes with the package"),
        (("fetch", "--data_dir", "mini"), "give a folder to download to"),
        (("list", "--data_dir", "no_such_folder"), "names the folder no_such_folder, which does not exist"),
        (("verify", "nothing"), "'nothing' is unknown"),
        (("get",), "invalid choice: 'get'"),
    ],
)
def test_wrong_arguments_leave_with_code_2_and_a_hint(capsys, arguments, message):
    code, _, err = fedbias(capsys, *arguments)
    assert code == 2
    assert err.startswith("fedbias: error: ")
    assert re.search(message, err)


def test_list_is_tab_separated_when_not_on_a_terminal(capsys, tmp_path):
    pairs = tmp_path / "mine" / "crows_pairs" / "crows_pairs_anonymized.csv"
    pairs.parent.mkdir(parents=True)
    pairs.write_text("x")
    code, out, _ = fedbias(capsys, "list", "--data_dir", str(tmp_path / "mine"))
    rows = {line.split("\t")[0]: line.split("\t") for line in out.splitlines() if "\t" in line}
    assert code == 0
    assert rows["name"] == ["name", "kind", "rows", "licence", "found in", "where"]
    assert rows["crows_pairs"] == ["crows_pairs", "crows_pairs", "1,508", "CC BY-SA 4.0", "data_dir", str(pairs)]
    assert rows["biasdpo"][4:] == ["-", "not here: fedbias data fetch biasdpo"]
    assert rows["mini-clean"][2:5] == ["2", "Apache-2.0", "bundled"]
    assert rows["mini-crows_pairs"][2] == "1"
    assert rows["mini-stereoset"][2] == "3"
    assert "Blodgett" in out


def test_list_is_a_table_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert list_datasets(None) == 0
    out = capsys.readouterr().out
    assert "\t" not in out
    assert "crows_pairs" in out


@pytest.mark.parametrize("columns", ["60", "80", "100", "200"])
def test_a_narrow_terminal_cuts_nothing_that_one_must_type(monkeypatch, capsys, columns):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", columns)
    assert list_datasets(None) == 0
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "…" not in out
    for known in catalog.all_known():
        assert re.search(rf"(^|\s){known.name}\s", out)
    assert max(len(line) for line in out.splitlines() if "┃" in line or "│" in line) <= int(columns)
    assert "fedbias data fetch biasdpo" in out


def test_verify_leaves_with_code_1_when_a_file_is_not_the_known_release(capsys, tmp_path, home, published):
    published(f"{home}/good")
    fedbias(capsys, "fetch", "pairs")
    code, out, _ = fedbias(capsys, "verify", "pairs")
    assert code == 0
    assert "known release" in out
    (tmp_path / "cache/pairs/pairs.csv").write_text("damaged")
    code, out, _ = fedbias(capsys, "verify")
    assert code == 1
    assert "DIFFERS" in out
    assert hashlib.sha256(b"damaged").hexdigest() in out


def test_verify_without_any_data_is_content(capsys):
    code, out, _ = fedbias(capsys, "verify")
    assert code == 0
    assert "not here" in out


def test_the_command_and_the_loaders_import_no_heavy_library():
    script = (
        "import sys, fedbias_plugin.cli.data, fedbias_plugin.data.partition; "
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_an_installation_without_its_mini_data_is_shown_and_not_a_crash(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(catalog, "MINI_DATA", tmp_path / "gone")
    code, out, _ = fedbias(capsys, "list")
    assert code == 0
    assert "missing: install the package again" in out
