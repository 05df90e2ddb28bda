"""``fedbias wandb-workspace``, from the command line to a server."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.tracking.wandb_workspace import HEAT_MAP_SPEC

wandb = pytest.importorskip("wandb", reason="the wandb package is not installed")
pytest.importorskip("wandb_workspaces", reason="the package wandb-workspaces is not installed")

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home without login; W&B keeps the server and login of its first use until it is torn down."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "NETRC", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield
    wandb.teardown()


class Server:
    """Answers W&B's queries and keeps them; ``refuses`` is answered to the mutation that saves a view."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refuses = ""

    def answer(self, query: str) -> dict[str, Any]:
        if "upsertView" in query and self.refuses:
            return {"errors": [{"message": self.refuses}], "data": {"upsertView": None}}
        if "upsertView" in query:
            return {"data": {"upsertView": {"view": {"id": "1", "name": "nw-abc-v"}, "inserted": True}}}
        if "createCustomChart" in query:
            return {"data": {"createCustomChart": {"chart": {"id": "2"}}}}
        viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer}}

    def variables(self, part: str) -> dict[str, Any]:
        """Of the one query that holds ``part``."""
        (found,) = [query["variables"] for query in self.asked if part in query["query"]]
        return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(query)
            content = json.dumps(state.answer(query["query"])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{httpd.server_address[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield state
        httpd.shutdown()


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that is refused says."""
    assert main(["wandb-workspace", *arguments]) == 2
    return capsys.readouterr().err


def test_a_dry_run_prints_what_would_be_saved_without_a_login(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wandb-workspace", "me/fedbias", "--tag", "table1", "--dry_run"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "Bias by round table1 (me/fedbias)"
    assert sum(line.startswith("  ") and line[2] != " " for line in others) == 9 + 1  # sections, and the columns
    assert len(others) < 75


def test_the_workspace_and_the_chart_of_its_heat_map_are_saved_and_the_address_printed(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["wandb-workspace", "me/fedbias", "--name", "Mine"]) == 0
    assert capsys.readouterr().out.endswith("/me/fedbias?nw=abc\n")
    view = server.variables("upsertView")
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "fedbias", "Mine")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert sections[0]["name"] == "Bias of the global model"
    chart = server.variables("createCustomChart")
    assert (chart["entity"], chart["chartName"], chart["access"]) == ("me", "fedbias-heat-map", "PRIVATE")
    assert json.loads(chart["spec"]) == HEAT_MAP_SPEC


def test_what_the_server_refuses_is_said_in_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.refuses = "permission denied"
    said = failed(capsys, "me/other")
    assert "W&B did not save the workspace in me/other" in said
    assert "permission denied" in said
    assert KEY not in said


def test_without_a_login_the_command_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "run `wandb login`, or look at the workspace with --dry_run" in failed(capsys, "me/fedbias")


def test_without_a_network_the_server_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 cannot be reached" in failed(capsys, "me/fedbias")


def test_a_project_without_its_entity_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'fedbias' is no W&B project; write ENTITY/PROJECT" in failed(capsys, "fedbias")
