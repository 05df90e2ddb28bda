"""How a patched script ends that cannot go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from tests.hosts.openfedllm.runner import Run, run_script, sft_flags

INTERRUPTED = """\
    if round == 1:
        import sys
        from fedbias_plugin.federation.session import BiasSession
        close = BiasSession.close
        def told(self, failure=None):
            if self._recorder.is_open:
                print("closed:", failure)
            close(self, failure=failure)
        BiasSession.close = told
        {statement}
"""


@pytest.fixture
def interrupted(
    double: Path, host_model: Path, host_data: Path, small_data: Path, tmp_path: Path
) -> Callable[..., Run]:
    """A run of two rounds that meets ``statement`` at the end of the second's training."""
    plan_patch(double).write()
    script = double / "main_sft.py"
    whole, anchor = script.read_text(), "    global_dict, global_auxiliary = global_aggregate("
    assert anchor in whole

    def start(statement: str) -> Run:
        script.write_text(whole.replace(anchor, INTERRUPTED.format(statement=statement) + anchor))
        flags = [*sft_flags(host_model, host_data, tmp_path / "out"), "--bias_benchmarks", "none", "--max_steps", "1"]
        return run_script(double, "main_sft.py", *flags, log=tmp_path / "log.txt")

    return start


@pytest.mark.parametrize(
    ("statement", "code", "failure", "traceback"),
    [
        ("raise OSError('The disk is full.')", 1, "OSError: The disk is full.", True),
        ("raise ValueError('odd')", 1, "ValueError: odd", True),
        ("sys.exit(3)", 3, "the script ended before its last round", False),
    ],
)
def test_a_run_that_breaks_off_is_marked_failed_once(interrupted, tmp_path, statement, code, failure, traceback):
    run = interrupted(statement)
    assert run.code == code, run.text
    lines = run.text.splitlines()
    assert [line for line in lines if line.startswith("closed:")] == [f"closed: {failure}"]
    assert ("Traceback" in run.text) is traceback
    (folder,) = (tmp_path / "out").iterdir()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (folder / "summary.json").exists()
