"""``run_scripts/audit.py``: what it makes of pip-audit's answers, without asking anybody."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

PATH = Path(__file__).parents[1] / "run_scripts/audit.py"
GOOD = {"name": "a", "version": "1.0", "vulns": []}
BAD = {"name": "b", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}, {"id": "CVE-2"}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.fixture
def audit(monkeypatch):
    """The script, with pip-audit pretended to be there; ``answer`` sets what it prints."""
    spec = importlib.util.spec_from_file_location("audit", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("AUDIT", raising=False)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())

    def answer(packages, stderr=""):
        text = "" if packages is None else json.dumps({"dependencies": packages})
        done = SimpleNamespace(stdout=text, stderr=stderr, returncode=1)
        monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: done)

    module.answer = answer
    return module


def test_a_vulnerability_is_named_with_its_cure_and_fails_only_when_asked_to(audit, capsys, monkeypatch):
    audit.answer([GOOD, BAD, UNKNOWN])
    assert audit.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "audit: VULNERABLE b 2.0: CVE-1, mended in 2.1",
        "audit: VULNERABLE b 2.0: CVE-2, mended in no version yet",
        "audit: 2 known vulnerabilities in 2 packages, 1 unknown to the service",
    ]
    monkeypatch.setenv("AUDIT", "1")
    assert audit.main() == 1


def test_nothing_found_is_one_line(audit, capsys, monkeypatch):
    monkeypatch.setenv("AUDIT", "1")
    audit.answer([GOOD])
    assert audit.main() == 0
    assert capsys.readouterr().out == "audit: no known vulnerability in 1 packages\n"


@pytest.mark.parametrize(("packages", "reason"), [(None, "no report (connection refused)"), ([UNKNOWN], "knows none")])
def test_without_the_service_one_line_says_that_it_was_skipped(audit, capsys, monkeypatch, packages, reason):
    monkeypatch.setenv("AUDIT", "1")
    audit.answer(packages, stderr="Traceback\nconnection refused")
    assert audit.main() == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("audit: SKIPPED")
    assert reason in line


def test_a_service_that_does_not_answer_is_skipped(audit, capsys, monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("pip-audit", 300)

    monkeypatch.setattr(audit.subprocess, "run", hang)
    assert audit.main() == 0
    assert "no answer within 300 s" in capsys.readouterr().out


def test_without_pip_audit_one_line_says_so(audit, capsys, monkeypatch):
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)
    assert audit.main() == 0
    assert "pip-audit is not installed" in capsys.readouterr().out
