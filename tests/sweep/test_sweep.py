"""Whole sweeps, started as a user starts them: shared work, failures, a kill and its mending."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.study.pivot import pivot_tables
from fedbias_plugin.study.study_file import find_study_file, load_study_file
from fedbias_plugin.study.table import markdown_table
from fedbias_plugin.study.tables import answers_table, arm_tables, items_table, pair_tables, warnings_table
from tests.hosts.run_folders import assert_same_run, comparable

EXPERIMENT = """
name: small
title: a small one
seeds: [1, 2]
arguments: {num_rounds: 2, max_steps: 2, batch_size: 4, client_samples: 8, heldout_samples: 4, seq_length: 256}
grid: {fed_alg: [fedavg], aggregation: [plain, bama]}
"""
NAMES = [f"fedavg_1B2C_{aggregation}_seed-{seed}" for seed in (1, 2) for aggregation in ("plain", "bama")]


@pytest.fixture(scope="module")
def files(tmp_path_factory, random_model):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "small.yaml").write_text(EXPERIMENT)
    (folder / "model.yaml").write_text(
        f"name: random\narguments: {{model_name_or_path: {random_model}, use_peft: true, learning_rate: 1.0e-3,\n"
        "  peft_lora_target_modules: all-linear, gradient_checkpointing: false}\n"
    )
    return folder


def command(files, small_data, output, *more):
    names = ["sweep", str(files / "small.yaml"), "--model", str(files / "model.yaml"), "--data_dir", str(small_data)]
    return [*names, "--output", str(output), *more]


def start(files, small_data, output, *more):
    arguments = [sys.executable, "-m", "fedbias_plugin", *command(files, small_data, output, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a test run in the background ignores
    )


def ended(process):
    """Exit code and output."""
    text, _ = process.communicate(timeout=300)
    return process.returncode, text


@pytest.fixture(scope="module")
def finished(tmp_path_factory, files, small_data):
    output = tmp_path_factory.mktemp("sweep") / "out"
    code, text = ended(start(files, small_data, output, "--jobs", "2"))
    assert code == 0, text
    return output, text


def test_a_sweep_makes_every_run_and_says_how_each_ended(finished):
    output, text = finished
    assert sorted(path.name for path in (output / "runs").iterdir()) == sorted(NAMES)
    assert all((output / "runs" / name / "summary.json").is_file() for name in NAMES)
    assert "4 runs: 4 to do; how long it takes is known after the first run" in text
    for name in NAMES:
        assert f"{name}: started, log: {output}/logs/{name}.log" in text
        assert f"{name}: finished; CrowS " in text
    assert f"all runs are done. Tables and figures: fedbias report {output}" in text


def test_a_run_of_a_sweep_is_what_fedbias_run_makes_of_its_file_of_flags(finished, tmp_path):
    output, _ = finished
    alone = tmp_path / "alone"
    assert main(["run", "--config", str(output / "configs" / f"{NAMES[1]}.yaml"), "--output_dir", str(alone)]) == 0
    assert_same_run(output / "runs" / NAMES[1], alone)


def test_the_original_model_is_scored_once(finished):
    output, _ = finished
    kept = list((output / "shared").glob("*.npz"))
    assert len(kept) == 2 + 2  # two benchmarks, and the held-out rows of each seed
    first = [comparable(output / "runs" / name)[0]["global"] for name in NAMES]
    assert first[0] == first[1]
    assert first[2] == first[3]


def test_the_same_command_again_starts_nothing(finished, files, small_data, capsys):
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("*") if path.is_file()}
    assert main(command(files, small_data, output)) == 0
    assert "4 runs: 4 done; nothing is left to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("*") if path.is_file()}


def test_a_dry_run_shows_the_plan_and_writes_nothing(files, small_data, tmp_path, capsys):
    assert main(command(files, small_data, tmp_path / "out", "--dry_run")) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}  to do" in shown.replace("     ", "  ") or name in shown for name in NAMES)
    assert not (tmp_path / "out").exists()


def test_a_killed_sweep_goes_on_a_failed_run_stops_no_other_and_the_end_has_the_same_bytes(
    finished, files, small_data, tmp_path
):
    whole, _ = finished
    output = tmp_path / "out"
    first, second = (output / "runs" / name for name in NAMES[:2])
    process = start(files, small_data, output, "--seeds", "1")
    until(lambda: (first / "metrics.jsonl").is_file() and (first / "metrics.jsonl").read_bytes().count(b"\n") >= 2)
    process.kill()  # its run is told by nobody and must find out by itself
    process.communicate()
    shutil.rmtree(second, ignore_errors=True)
    second.mkdir()
    (second / "notes.txt").write_text("somebody wrote here")
    code, text = ended(start(files, small_data, output, "--seeds", "1"))
    assert code == 1, text
    assert "to go on with after round" in text or f"  {NAMES[0]}  done" in text
    assert "1 of the runs failed; the same command tries them again:" in text
    assert f"  {NAMES[1]}: exit code 2: fedbias: error: --output_dir" in text
    assert (first / "summary.json").is_file()
    (second / "notes.txt").unlink()
    code, text = ended(start(files, small_data, output, "--seeds", "1"))
    assert code == 0, text
    assert "2 runs: 1 done, 1 to do; about " in text
    for name in NAMES[:2]:
        assert_same_run(whole / "runs" / name, output / "runs" / name)
    assert report_without_times(output) == report_without_times(whole)


def report_without_times(output):
    """The tables of the report on the runs of seed 1, but for the one of seconds and memory."""
    study, file = load_study([output / "runs" / name for name in NAMES[:2]]), load_study_file(find_study_file([], None))
    answers, _ = answer_all(study, file)
    tables = [answers_table(answers), *pivot_tables(study, file), *pair_tables(answers)]
    tables += [*items_table(answers), *warnings_table(study), *arm_tables(study)]
    assert {"table3", "quality", "comparisons"} <= {table.id for table in tables}
    return [markdown_table(table) for table in tables if table.id != "cost"]


def test_ctrl_c_ends_the_runs_in_order_and_says_130(files, small_data, tmp_path):
    output = tmp_path / "out"
    process = start(files, small_data, output)
    log = output / "logs" / f"{NAMES[0]}.log"
    until(lambda: (output / "runs" / NAMES[0] / "metrics.jsonl").is_file())
    process.send_signal(signal.SIGINT)
    code, text = ended(process)
    assert code == 130, text
    assert "--resume" in log.read_text()
    assert not (output / "runs" / NAMES[0] / "summary.json").exists()


def test_a_sweep_cannot_be_started_twice_in_one_folder(files, small_data, tmp_path, capsys):
    from fedbias_plugin.federation.checkpoints import locked

    output = tmp_path / "out"
    (output / "runs").mkdir(parents=True)
    with locked(output):
        assert main(command(files, small_data, output)) == 2
    assert "is being written by another process" in capsys.readouterr().err


def test_too_few_rows_are_found_before_any_run_is_started(files, small_data, tmp_path, capsys):
    assert main(command(files, small_data, tmp_path / "out", "--client_samples", "4000")) == 2
    assert "run fedavg_1B2C_plain_seed-1: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_a_dead_process_still_holds_is_waited_for(tmp_path):
    from fedbias_plugin.errors import UserError
    from fedbias_plugin.federation.checkpoints import locked
    from fedbias_plugin.sweep.one_run import wait_until_free

    wait_until_free(tmp_path / "none")
    with locked(tmp_path), pytest.raises(UserError, match="another process"):
        wait_until_free(tmp_path, patience=0.1)
    wait_until_free(tmp_path, patience=0.1)


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.05)


def test_settings_of_a_run_are_the_planned_ones(finished):
    output, _ = finished
    config = json.loads((output / "runs" / NAMES[3] / "run.json").read_text())["config"]
    assert (config["seed"], config["aggregation"], config["num_rounds"]) == (2, "bama", 2)
