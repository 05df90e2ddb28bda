"""``fedbias report`` on the command line."""

from pathlib import Path

import pytest

from fedbias_plugin.cli.main import main
from tests.study.made_up import make_run


def test_the_command_writes_the_report_and_says_where_its_page_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert main(["report", str(run), "--output", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"written: {(tmp_path / 'out' / 'report.html').resolve()}, with report.md")
    assert "tables and figures" in err
    assert (tmp_path / "out" / "report.md").is_file()


def test_a_folder_without_runs_is_an_error_and_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
