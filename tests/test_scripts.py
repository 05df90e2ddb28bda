"""The scripts a stranger runs, as far as they can be checked without installing anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("run_scripts/*.sh"), *ROOT.glob("tests/slurm/*.sh")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_valid_shell(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_pinned_direct_dependency_is_within_the_range_of_setup_py():
    from packaging.requirements import Requirement
    from packaging.version import Version

    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in pins}
    ranges = [Requirement(part) for part in source.split('"') if ">=" in part and part[0].isalpha()]
    assert {"torch", "transformers", "peft"} <= {wanted.name for wanted in ranges}
    for wanted in ranges:
        if wanted.name.lower() in pinned:
            assert Version(pinned[wanted.name.lower()]) in wanted.specifier, wanted


@pytest.mark.parametrize(("folder", "most"), [("fedbias_plugin", 300), ("run_scripts", 300), ("tests", 400)])
def test_no_file_is_too_long(folder, most):
    files = (ROOT / folder).rglob("*.py")
    assert {path.name: n for path in files if (n := len(path.read_text().splitlines())) > most} == {}
