"""The architecture's test: an extension is one file and a name, and everything else follows from that.

``guests.py`` is registered as a stranger's package does it, with entry points, and nothing else knows it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.openfedllm.conftest import double, host_data, host_model  # noqa: F401
from tests.hosts.openfedllm.run_results import adapter, records
from tests.hosts.openfedllm.runner import Run, cut_off, run_script, sft_flags

current_only = pytest.mark.skipif(detect_stack() != "current", reason="the built-in host needs the current libraries")
ENTRY_POINTS = "[fedbias_plugin.rule]\nleader = guests:Leader\n\n[fedbias_plugin.tracker]\ntally = guests:Tally\n\n"
ENTRY_POINTS += "[fedbias_plugin.stage]\nshrink = guests:Shrink\n"
FLAGS = "--use_peft --num_rounds 3 --num_clients 3 --max_steps 1 --batch_size 2 --seed 7 --scenario 1B2C "
FLAGS += "--client_samples 6 --heldout_samples 4 --learning_rate 5e-3 --gradient_checkpointing false"
LEADER = ("--aggregation", "leader", "--leader_share", "0.8", "--track", "jsonl,tally", "--tally_mark", "#")
SHRUNK = ("--shrink", "0.5")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the stranger's package, as pip would install it."""
    folder = tmp_path / "site"
    (folder / "guests-1.0.dist-info").mkdir(parents=True)
    (folder / "guests-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: guests\nVersion: 1.0\n")
    (folder / "guests-1.0.dist-info/entry_points.txt").write_text(ENTRY_POINTS)
    shutil.copy(Path(__file__).with_name("guests.py"), folder)
    return folder


@pytest.fixture
def fedbias(site, tmp_path):
    """``fedbias("run", ...)`` -> how it ended, where the stranger's package is installed."""
    main = "from fedbias_plugin.cli.main import main\nsys.exit(main())\n"
    (tmp_path / "fedbias.py").write_text(f"import sys\nsys.path.insert(0, {str(site)!r})\n{main}")

    def call(*words: str, script: str = "fedbias.py") -> Run:
        return run_script(tmp_path, script, *words, log=tmp_path / "log")

    return call


@pytest.fixture
def run(fedbias, tmp_path, host_model, small_data):  # noqa: F811
    """``run("out", *flags)`` -> the folder of a small run."""

    def call(output: str, *flags: str, script: str = "fedbias.py", code: int = 0) -> Path:
        folder = tmp_path / output
        given = ["--model_name_or_path", str(host_model), "--data_dir", str(small_data), *FLAGS.split()]
        ended = fedbias("run", *given, "--output_dir", str(folder), *flags, script=script)
        assert ended.code == code, ended.text[-3000:]
        return folder

    return call


@current_only
def test_a_stranger_s_rule_stage_and_tracker_are_trained_with_recorded_compared_and_reported(run, fedbias, tmp_path):
    led = run("led", *LEADER, "--fed_alg", "fedprox")
    rounds = records(led)
    assert [record["aggregation"] for record in rounds] == ["leader"] * 4
    leaders = [max(record["clients"], key=lambda c: record["clients"][c]["weight"]) for record in rounds[1:]]
    assert leaders == ["0", "1", "2"]
    assert [client["weight"] for client in rounds[1]["clients"].values()] == pytest.approx([0.8, 0.1, 0.1])
    assert all("one leads: in round 2 as agreed" in record["warnings"] for record in rounds if record["round"] == 2)
    assert (led / "tally.txt").read_text() == "0 #\n1 #\n2 #\n3 #\n"
    assert rounds[0]["settings"]["leader_share"] == 0.8
    plain = run("plain", *SHRUNK)
    assert records(plain)[0]["settings"]["shrink"] == 0.5
    sizes = [client["update_norm"] for client in records(plain)[1]["clients"].values()]
    whole = [client["update_norm"] for client in records(run("unshrunk"))[1]["clients"].values()]
    assert sizes == pytest.approx([size / 2 for size in whole], rel=1e-4)
    compared = fedbias("compare", str(plain), str(led))
    assert compared.code == 0, compared.text
    assert "led" in compared.text
    reported = fedbias("report", str(plain), str(led), "--output", str(tmp_path / "page"))
    assert reported.code == 0, reported.text[-3000:]
    assert "leader" in next((tmp_path / "page").glob("report.md")).read_text()


@current_only
def test_a_stranger_s_rule_and_stage_go_on_after_a_kill_with_the_state_they_had(run, fedbias, tmp_path):
    whole = run("whole", *LEADER, *SHRUNK)
    cut_off(tmp_path / "cut.py", "fedbias.py", "os.replace", "round_002")
    cut = run("cut", *LEADER, *SHRUNK, script="cut.py", code=-9)
    ended = fedbias("run", "--resume", str(cut))
    assert ended.code == 0, ended.text[-3000:]
    assert records(whole) == records(cut)
    assert [client["extra"] for client in records(cut)[3]["clients"].values()] == [
        {"received": number} for number in (7, 8, 9)
    ]
    assert all((tensor == adapter(cut)[name]).all() for name, tensor in adapter(whole).items())


@current_only
def test_flags_of_a_stranger_stand_in_help_and_yaml_are_checked_and_idle_without_their_extension(
    run, fedbias, tmp_path
):
    shown = " ".join(fedbias("run", "--help").text.split())
    assert "--leader_share X weight of the client that leads (default: 0.5)" in shown
    assert "one of plain, bama, median, trimmed_mean, krum, multi_krum, norm_clip, leader" in shown
    (tmp_path / "config.yaml").write_text("aggregation: leader\nleader_share: 0.9\n")
    folder = run("out", "--config", str(tmp_path / "config.yaml"), "--num_rounds", "1")
    assert max(client["weight"] for client in records(folder)[1]["clients"].values()) == 0.9
    assert "--leader_share must be greater than 0 and at most 1, got 2.0." in fedbias("run", "--leader_share", "2").text
    idle = fedbias("run", "--leader_share", "0.9", "--model_name_or_path", "nowhere/at/all").text
    assert "--leader_share has no effect without --aggregation leader." in idle


@current_only
@pytest.mark.parametrize(
    ("flag", "owner"),
    [
        ("client_samples", "the plugin has one of that name"),
        ("bama_lambda", "the rule 'bama' has one of that name"),
        ("learning_rate", "a flag of a name that is taken"),
    ],
)
def test_a_stranger_s_flag_of_a_name_that_is_taken_is_refused_and_changes_no_default(site, fedbias, flag, owner):
    guests = site / "guests.py"
    guests.write_text(guests.read_text().replace("leader_share", flag))
    ended = fedbias("run", "--help")
    assert (ended.code, owner in ended.text, f"--{flag}" in ended.text) == (2, True, True)
    assert "Traceback" not in ended.text


def test_a_stranger_s_rule_works_in_a_patched_openfedllm(site, double, host_model, host_data, small_data, tmp_path):  # noqa: F811
    plan_patch(double).write()
    script = double / "main_sft.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(site)!r})\n" + script.read_text())
    (tmp_path / "out").mkdir()
    flags = [*sft_flags(host_model, host_data, tmp_path / "out"), "--data_dir", str(small_data), *LEADER]
    ended = run_script(double, "main_sft.py", *flags, log=tmp_path / "log")
    assert ended.code == 0, ended.text[-3000:]
    (folder,) = (tmp_path / "out").iterdir()
    assert max(client["weight"] for client in records(folder)[1]["clients"].values()) == 0.8
    assert (folder / "tally.txt").read_text() == "0 #\n1 #\n2 #\n"


def test_the_rule_of_the_documents_is_one(monkeypatch):
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
    module = ModuleType("my_rules")
    monkeypatch.setitem(sys.modules, "my_rules", module)
    exec(page.split("```python\n")[1].split("```")[0], module.__dict__)
    rows = {0: 50, 3: 200, 4: 300}
    reports = ClientReports("fedavg", sample_counts=rows, bias_scores={}, global_state={}, local_states={})
    assert module.Trust(trust_rows=200).weigh(reports).weights == {0: 0.0, 3: 0.5, 4: 0.5}
    assert module.Trust(trust_rows=1000).weigh(reports).weights == pytest.approx({0: 1 / 3, 3: 1 / 3, 4: 1 / 3})


def test_the_table_of_flags_holds_those_of_a_stranger(site):
    code = "import json\nfrom fedbias_plugin.options import flag_rows\nfrom fedbias_plugin.registry import load\n"
    code += "print(json.dumps(flag_rows(load('flags', 'plugin'))))"
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=site, env=where, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert "| `--leader_share` | `0.5` | weight of the client that leads |" in rows
    assert "| `--tally_mark` | `|` | what stands for a round |" in rows
