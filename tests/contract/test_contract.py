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
import torch
from safetensors.torch import load_file

from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from fedbias_plugin.registry import EXTENSIONS
from fedbias_plugin.tracking.records import GlobalRecord, RoundRecord
from fedbias_plugin.tracking.series import series
from tests.hosts.openfedllm.conftest import double, host_data, host_model  # noqa: F401
from tests.hosts.openfedllm.run_results import adapter, records
from tests.hosts.openfedllm.runner import Run, cut_off, run_script, sft_flags

current_only = pytest.mark.skipif(detect_stack() != "current", reason="the built-in host needs the current libraries")
GUESTS = {
    "rule": "leader = guests:Leader",
    "stage": "shrink = guests:Shrink",
    "metric": "gap = guests:Gap",
    "split": "turns = guests:Turns",
    "partitioner": "slices = guests:Slices",
    "transform": "shout = guests:Shout",
    "task": "everything = guests:Everything",
    "trainable": "norms = guests:Norms",
    "term": "anchor = guests:Anchor",
    "tracker": "tally = guests:Tally",
}
ENTRY_POINTS = "\n".join(f"[fedbias_plugin.{kind}]\n{place}\n" for kind, place in GUESTS.items())
FLAGS = "--use_peft --num_rounds 3 --num_clients 3 --max_steps 1 --batch_size 2 --seed 7 --scenario 1B2C "
FLAGS += "--client_samples 6 --heldout_samples 4 --learning_rate 5e-3 --gradient_checkpointing false"
LEADER = ("--aggregation", "leader", "--leader_share", "0.8", "--track", "jsonl,tally", "--tally_mark", "#")
SHRUNK = ("--shrink", "0.5")
ALL = (
    *LEADER,
    *SHRUNK,
    *("--shrink_result", "0.5", "--bias_benchmarks", "crows_pairs,gap", "--gap_word", "calm", "--scenario", "turns"),
    *("--turn_rows", "5", "--shout", "true", "--task", "everything", "--joined_by", ": ", "--trainable", "norms"),
    *("--norms_like", "input_layernorm", "--anchor", "0.01", "--use_peft", "false"),
    *("--track", "jsonl,tally,tensorboard"),
)
"""One extension of every kind, and a flag of each."""


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
    led = run("led", *LEADER, "--fed_alg", "fedprox", "--partitioner", "slices", "--slice_skip", "3")
    manifest = json.loads((led / "manifest.json").read_text())
    assert (manifest["skipped"], [client["rows"] for client in manifest["clients"]]) == (3, [6, 6, 6])
    rounds = records(led)
    assert [record["aggregation"] for record in rounds] == ["leader"] * 4
    leaders = [max(record["clients"], key=lambda c: record["clients"][c]["weight"]) for record in rounds[1:]]
    assert leaders == ["0", "1", "2"]
    assert [client["weight"] for client in rounds[1]["clients"].values()] == pytest.approx([0.8, 0.1, 0.1])
    assert "one leads: in round 2 as agreed, 0 items seen" in rounds[2]["warnings"]
    assert (led / "tally.txt").read_text() == "0 #\n1 #\n2 #\n3 #\n"
    assert rounds[0]["settings"]["leader_share"] == 0.8
    plain = run("plain", *SHRUNK)
    assert records(plain)[0]["settings"]["shrink"] == 0.5
    sizes = [client["update_norm"] for client in records(plain)[1]["clients"].values()]
    unshrunk = run("unshrunk", "--num_rounds", "1", "--bias_benchmarks", "none")
    whole = [client["update_norm"] for client in records(unshrunk)[1]["clients"].values()]
    assert sizes == pytest.approx([size / 2 for size in whole], rel=1e-4)
    compared = fedbias("compare", str(plain), str(led))
    assert compared.code == 0, compared.text
    assert "led" in compared.text
    reported = fedbias("report", str(plain), str(led), "--output", str(tmp_path / "page"))
    assert reported.code == 0, reported.text[-3000:]
    assert "leader" in next((tmp_path / "page").glob("report.md")).read_text()


@current_only
def test_one_extension_of_every_kind_trains_together_is_recorded_tracked_and_resumed_to_the_same_bytes(
    run, fedbias, tmp_path
):
    whole = run("whole", *ALL)
    first, *rounds = records(whole)
    settings = first["settings"]
    given = {"gap_word": "calm", "turn_rows": 5, "shout": True, "joined_by": ": ", "anchor": 0.01}
    assert {name: settings[name] for name in given} == given
    assert all("shouting: every response is in capitals" in record["warnings"] for record in [first, *rounds])
    gap = first["global"]["gap"]
    assert (gap["ideal"], gap["n"], gap["full"]["n"], gap["probe"]["n"], gap["items"]) == (0.0, 3, 6, 3, "report")
    assert [client["gap"]["n"] for client in rounds[0]["clients"].values()] == [3, 3, 3]
    assert [client["rows"] for client in rounds[0]["clients"].values()] == [5, 5, 5]
    assert [client["poisoned_share"] for client in rounds[0]["clients"].values()] == [None] * 3
    # One step of one micro-batch a client and round: 3 clients x 3 rounds, counted by the stage and by the term.
    extras = [client["extra"] for record in rounds for client in record["clients"].values()]
    own = {"client_memory_bytes": extras[0]["client_memory_bytes"]}
    assert extras == [{"anchored": number, "received": number, **own} for number in range(1, 10)]
    # Three clients see three probe items a round.
    assert "one leads: in round 3 as agreed, 27 items seen" in rounds[2]["warnings"]
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["scenario"], list(manifest["sources"])) == ("turns", ["turns"])
    assert (whole / "scores/round_003_gap.npz").is_file()
    trained = load_file(whole / "model/model.safetensors")
    before = load_file(Path(settings["model_name_or_path"]) / "model.safetensors")
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "input_layernorm" in name}
    cut_off(tmp_path / "cut.py", "fedbias.py", "os.replace", "round_002")
    cut = run("cut", *ALL, script="cut.py", code=-9)
    ended = fedbias("run", "--resume", str(cut))
    assert ended.code == 0, ended.text[-3000:]
    assert records(whole) == records(cut)
    assert (whole / "model/model.safetensors").read_bytes() == (cut / "model/model.safetensors").read_bytes()
    assert (whole / "tally.txt").read_text() == "0 #\n1 #\n2 #\n3 #\n"
    compared = fedbias("compare", str(whole), str(cut))
    assert (compared.code, "word gap" in compared.text) == (0, True), compared.text
    reported = fedbias("report", str(whole), "--output", str(tmp_path / "page"))
    assert reported.code == 0, reported.text[-3000:]
    assert "word gap" in (tmp_path / "page/report.md").read_text()
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curves = accumulators.EventAccumulator(str(cut / "tensorboard")).Reload()
    assert [event.value for event in curves.Scalars("bias/gap")] == pytest.approx(
        [record["global"]["gap"]["value"] for record in records(cut)], rel=1e-6
    )
    wanted = {"bias/gap_delta", "client_0/gap", "client_0/anchored", "client_2/received"}
    assert wanted <= set(curves.Tags()["scalars"])


@current_only
def test_a_stranger_s_metric_is_evaluated_without_training(fedbias, host_model, small_data, tmp_path):  # noqa: F811
    told = ("--model_name_or_path", str(host_model), "--data_dir", str(small_data), "--gap_word", "calm")
    output = tmp_path / "bias.json"
    ended = fedbias("evaluate", *told, "--bias_benchmarks", "gap,crows_pairs", "--output", str(output))
    assert ended.code == 0, ended.text
    gap = json.loads(output.read_text())["gap"]
    shown = next(line for line in ended.text.splitlines() if line.startswith("word gap  "))
    assert shown.split()[2] == f"{gap['value']:.2f}"
    assert shown.endswith("n=6")
    assert "CrowS-Pairs (sum)" in ended.text


@current_only
def test_a_stranger_s_rule_and_stage_go_on_after_a_kill_with_the_state_they_had(run, fedbias, tmp_path):
    whole = run("whole", *LEADER, *SHRUNK)
    cut_off(tmp_path / "cut.py", "fedbias.py", "os.replace", "round_002")
    cut = run("cut", *LEADER, *SHRUNK, script="cut.py", code=-9)
    ended = fedbias("run", "--resume", str(cut))
    assert ended.code == 0, ended.text[-3000:]
    assert records(whole) == records(cut)
    assert [client["extra"]["received"] for client in records(cut)[3]["clients"].values()] == [7, 8, 9]
    assert all((tensor == adapter(cut)[name]).all() for name, tensor in adapter(whole).items())


@current_only
def test_flags_of_a_stranger_stand_in_help_and_yaml_are_checked_and_idle_without_their_extension(
    run, fedbias, tmp_path
):
    shown = " ".join(fedbias("run", "--help").text.split())
    for flag in ("shrink", "gap_word", "turn_rows", "shout", "joined_by", "norms_like", "anchor", "tally_mark"):
        assert f"--{flag} " in shown, flag
    assert "--leader_share X weight of the client that leads (default: 0.5)" in shown
    assert f"one of {', '.join(EXTENSIONS['rule'])}, leader" in shown
    (tmp_path / "config.yaml").write_text("aggregation: leader\nleader_share: 0.9\n")
    folder = run("out", "--config", str(tmp_path / "config.yaml"), "--num_rounds", "1")
    assert max(client["weight"] for client in records(folder)[1]["clients"].values()) == 0.9
    assert "--leader_share must be greater than 0 and at most 1, got 2.0." in fedbias("run", "--leader_share", "2").text
    alone = ("--leader_share", "0.9", "--gap_word", "calm", "--turn_rows", "3", "--joined_by", "-", "--norms_like", "x")
    idle = fedbias("run", *alone, "--model_name_or_path", "nowhere/at/all").text
    for flag, chooser in (
        ("leader_share", "aggregation leader"),
        ("gap_word", "bias_benchmarks gap"),
        ("turn_rows", "scenario turns"),
        ("joined_by", "task everything"),
        ("norms_like", "trainable norms"),
    ):
        assert f"--{flag} has no effect without --{chooser}." in idle


@current_only
@pytest.mark.parametrize(
    ("flag", "owner"),
    [
        ("client_samples", "the split '1B2C' has one of that name"),
        ("data_dir", "the plugin has one of that name"),
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


@current_only
def test_a_stranger_s_package_that_cannot_be_imported_is_named_in_one_line(site, fedbias):
    (site / "guests.py").unlink()
    ended = fedbias("run", "--help")
    assert (ended.code, "Traceback" in ended.text) == (2, False)
    assert "The rule 'leader' (guests:Leader) of another package cannot be used: No module named 'guests'" in ended.text


def test_strangers_join_a_patched_openfedllm_and_what_it_cannot_do_is_refused(
    site,
    double,  # noqa: F811
    host_model,  # noqa: F811
    host_data,  # noqa: F811
    small_data,
    tmp_path,
):
    plan_patch(double).write()
    script = double / "main_sft.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(site)!r})\n" + script.read_text())
    (tmp_path / "out").mkdir()
    joining = ("--shrink_result", "0.5", "--bias_benchmarks", "gap", "--scenario", "turns", "--shout", "true")
    flags = [*sft_flags(host_model, host_data, tmp_path / "out"), "--data_dir", str(small_data), *LEADER]
    ended = run_script(double, "main_sft.py", *flags, *joining, "--anchor", "0.01", log=tmp_path / "log")
    assert ended.code == 0, ended.text[-3000:]
    (folder,) = (tmp_path / "out").iterdir()
    first, *rounds = records(folder)
    assert max(client["weight"] for client in rounds[0]["clients"].values()) == 0.8
    assert first["global"]["gap"]["n"] == 3
    assert all(client["extra"]["anchored"] > 0 for client in rounds[0]["clients"].values())
    assert "shouting: every response is in capitals" in first["warnings"]
    refused = run_script(double, "main_sft.py", *flags, "--task", "everything", log=tmp_path / "log")
    assert (refused.code, "--task and --trainable belong to fedbias run" in refused.text) == (2, True)
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


def test_the_metric_of_the_documents_is_one(monkeypatch):
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
    module = ModuleType("my_metrics")
    monkeypatch.setitem(sys.modules, "my_metrics", module)
    exec(page.split("# my_metrics.py\n")[1].split("```")[0], module.__dict__)
    metric = module.FirstWord(first_word="A")
    module.FirstWord.name = "first_word"
    block = metric.block(metric.result([-2.0, -3.5], seed=0))
    assert (block["value"], block["ideal"], block["n"]) == (1.5, 0.0, 1)
    curves = series(RoundRecord(0, GlobalRecord({"first_word": block})))
    assert (curves["bias/first_word"], curves["bias/first_word_delta"]) == (1.5, 1.5)


def test_the_table_of_flags_holds_those_of_a_stranger(site):
    root = Path(__file__).parents[2]
    code = f"import runpy; print(runpy.run_path({str(root / 'run_scripts/flag_table.py')!r})['tables']())"
    where = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=site, env=where, capture_output=True, text=True, check=True)
    rows = done.stdout.splitlines()
    assert "| `--leader_share` | `0.5` | yes | weight of the client that leads |" in rows
    assert "| `--gap_word` | `kind` | yes | word whose likelihood is compared with that of 'rude' |" in rows
    assert "| `--anchor` | `0.0` | yes | strength of a pull to zero |" in rows
    assert "| `--tally_mark` | `|` | yes | what stands for a round |" in rows
