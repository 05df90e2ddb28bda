"""The README's first command, for people who installed a wheel."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from fedbias_plugin import configs_folder
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.cli import quickstart as module
from fedbias_plugin.cli.main import main
from fedbias_plugin.cli.quickstart import beside, quickstart
from fedbias_plugin.configs_folder import RUNS, config_names, find_config
from fedbias_plugin.errors import UserError
from fedbias_plugin.flags import field_types
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.hosts.builtin.start import config_values

ROOT = Path(__file__).parents[2]


def test_the_quickstart_runs_both_ways_to_weigh_and_compares_them(tmp_path, capsys, monkeypatch, small_data):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    small = ["--num_rounds", "1", "--client_samples", "8", "--heldout_samples", "2", "--local_epochs", "1"]
    small += ["--data_dir", str(small_data)]
    assert quickstart(tmp_path / "both", small) == 0
    configs = [
        json.loads((tmp_path / "both" / name / "run.json").read_text())["config"] for name in ("fedavg", "fedavg_bama")
    ]
    assert [config["aggregation"] for config in configs] == ["plain", "bama"]
    assert {config["peft_lora_target_modules"] for config in configs} == {"all-linear"}
    printed = capsys.readouterr().out
    assert "Client weights (* holds biased rows)" in printed
    assert printed.splitlines()[-1].startswith(f"Files: {tmp_path / 'both' / 'fedavg'} and ")


SECOND = "import sys; print('second'); print('why', file=sys.stderr); sys.exit(3)"


@pytest.mark.parametrize(("code", "expected", "shown"), [(0, 3, "second\n"), (2, 2, "")])
def test_the_second_run_goes_on_beside_the_first_and_shows_its_words_after_it(code, expected, shown, capfd):
    with beside([sys.executable, "-c", SECOND]) as finished:
        assert (code or finished()) == expected
    assert capfd.readouterr().out == shown


def test_a_second_run_is_stopped_where_the_first_one_fails():
    start = time.monotonic()
    with pytest.raises(ValueError, match="first"), beside([sys.executable, "-c", "import time; time.sleep(60)"]):
        raise ValueError("first")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("number", "expected"), [(1, ["plain", "bama", "compare"]), (2, ["plain", "compare"])])
def test_on_one_core_the_runs_go_one_after_the_other(number, expected, monkeypatch, tmp_path):
    called, started = [], []

    @contextmanager
    def noted(command):
        started.append(command[command.index("--aggregation") + 1])
        yield lambda: 0

    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    monkeypatch.setattr(module, "cores", lambda: number)
    monkeypatch.setattr(module, "beside", noted)
    monkeypatch.setattr(module, "_fedbias", lambda *words: called.append(words) or 0)
    assert quickstart(tmp_path / "both") == 0
    assert [words[4] if words[0] == "run" else words[0] for words in called] == expected
    assert started == ["bama"] * (number - 1)


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    assert main(["quickstart", str(tmp_path)]) == 2
    assert f"{tmp_path} is there already; remove it or give another folder" in capsys.readouterr().err


def test_the_script_of_the_readme_runs_the_same_command():
    assert 'fedbias quickstart "$@"\n' in (ROOT / "run_scripts/quickstart.sh").read_text()


@pytest.mark.parametrize("given", ["quickstart", "configs/quickstart.yaml", "./configs/quickstart.yaml"])
def test_our_file_of_flags_is_found_by_name_and_by_path_wherever_one_stands(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_values(given)["scenario"] == "1B2C"


def test_experiments_are_found_by_their_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_config("experiments", "configs/experiments/table1.yaml", "experiment")
    assert found == find_config("experiments", "table1", "experiment")


def test_a_file_of_ones_own_wins_over_a_name_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("num_rounds: 7\n")
    assert config_values("quickstart") == {"num_rounds": 7}


@pytest.mark.parametrize("given", ["quikstart", "configs/quikstart.yaml"])
def test_a_name_that_is_nearly_ours_is_suggested(given):
    with pytest.raises(UserError, match=f"--config {given}: there is no such file.*Did you mean 'quickstart'"):
        find_config(RUNS, given, "--config")


def test_every_packaged_file_that_holds_flags_alone_is_one_of_ours():
    flags = {*field_types(HostArguments), *field_types(BiasArguments)}
    files = configs_folder.configs_folder().glob("*.yaml")
    assert [path.stem for path in files if flags >= set(yaml.safe_load(path.read_text()))] == config_names(RUNS)
