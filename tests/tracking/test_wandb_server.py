"""Finding out about W&B's login and server without importing W&B."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fedbias_plugin.tracking import wandb_server
from fedbias_plugin.tracking.wandb_server import login_source, server_url, unreachable_reason


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working folder, no W&B variables."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_BASE_URL",
        "NETRC",
        "WANDB_CONFIG_DIR",
        "WANDB_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[str]:
    """A server on this machine that answers 404 to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def test_an_empty_machine_has_no_login_and_the_public_server() -> None:
    assert login_source(server_url()) is None
    assert server_url() == "https://api.wandb.ai"


@pytest.mark.parametrize("variable", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_a_login_in_the_environment_is_named_never_shown(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "secret")
    assert login_source(server_url()) == variable


def test_a_netrc_entry_counts_for_its_own_server_only(home: Path) -> None:
    (home / ".netrc").write_text("machine wandb.example.org\n  login user\n  password secret\n")
    (home / ".netrc").chmod(0o600)
    assert login_source("https://wandb.example.org/") == ".netrc"
    assert login_source("https://api.wandb.ai") is None


def test_the_public_server_under_its_newer_name_takes_the_login_of_its_older_one(home: Path) -> None:
    (home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    (home / ".netrc").chmod(0o600)
    assert login_source("https://api.forge.coreweave.com") == ".netrc"


def test_the_package_knows_its_public_server_and_the_environment_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("wandb")
    package.Settings = lambda: SimpleNamespace(base_url="https://api.example.org/")  # type: ignore[attr-defined]
    assert server_url(package) == "https://api.example.org"
    assert server_url(ModuleType("an old wandb")) == "https://api.wandb.ai"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert server_url(package) == "https://wandb.example.org"


def test_a_damaged_netrc_is_no_login(home: Path) -> None:
    (home / ".netrc").write_text("machine\n\x00what")
    assert login_source(server_url()) is None


def test_settings_files_give_server_and_login(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config").mkdir()
    (home / "config" / "settings").write_text("[default]\nbase_url = https://wandb.example.org/\napi_key = secret\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
    assert server_url() == "https://wandb.example.org"
    assert login_source(server_url()) == "W&B settings"


def test_a_server_that_answers_anything_is_reachable(server: str) -> None:
    assert unreachable_reason(server) is None


def test_a_refused_connection_is_a_reason() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in (unreachable_reason(f"http://127.0.0.1:{port}") or "").lower()


def test_a_server_that_never_answers_costs_the_timeout_and_no_more() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        assert unreachable_reason(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
    assert time.monotonic() - start < 3


def test_name_resolution_that_hangs_costs_the_timeout_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(wandb_server, "_try_url", lambda url, timeout: released.wait(30) and None)
    assert unreachable_reason("http://example.invalid", timeout=0.1) == "no answer within 0.1 s"
    released.set()


def test_an_address_that_is_none_is_a_reason() -> None:
    assert unreachable_reason("not an address") is not None
