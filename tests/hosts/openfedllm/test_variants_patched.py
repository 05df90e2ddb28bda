"""Every shape of a checkout: patched, run, killed, resumed, unpatched; what cannot run is refused at patch time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch, plan_unpatch
from tests.hosts.openfedllm.run_results import digests, records
from tests.hosts.openfedllm.runner import Run, cut_off, run_script
from tests.hosts.openfedllm.variants import VARIANTS, variant_flags

REFUSED = {
    "no_num_clients": "config.py has no flag --num_clients, which the plugin reads",
    "late_num_clients": "config.py has no flag --num_clients, which the plugin reads",
}
RUNS = [name for name in VARIANTS if name not in REFUSED]
SCRIPTS = ["main_sft.py", "main_dpo.py"]
KILLED = [*((name, "main_sft.py") for name in RUNS), ("bench", "main_dpo.py")]
"""What is also killed and resumed: every shape; DPO, which differs in its trainer alone, where rows come split."""
FLAGS = "--max_steps 1 --seed 7 --scenario 1B2C --client_samples 6 --heldout_samples 4 --aggregation bama "
FLAGS += "--bama_crows_fraction 0.5 --bama_stereoset_fraction 0.5"

Start = Callable[..., tuple[Run, Path | None]]


@pytest.fixture
def start(tmp_path: Path, host_model: Path, host_data: Path, small_data: Path) -> Start:
    """``start(name, folder, script, *flags, output="out", cut=False)`` -> how it ended, and the run's folder."""

    def run(
        name: str, folder: Path, script: str, *flags: str, output: str, cut: bool = False
    ) -> tuple[Run, Path | None]:
        place = tmp_path / output
        place.mkdir(exist_ok=True)
        given = variant_flags(name, script, host_model, host_data, place)
        given += [*FLAGS.split(), "--data_dir", str(small_data), *flags]
        started = cut_off(tmp_path / "cut_off.py", script, "print", "Round 2") if cut else script
        ended = run_script(folder, str(started), *given, log=tmp_path / f"{output}.log")
        return ended, next((path.parent for path in place.rglob("metrics.jsonl")), None)

    return run


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", RUNS)
def test_a_variant_runs_and_a_killed_run_of_it_ends_as_if_nothing_had_happened(variant, start, name, script):
    folder = variant(name)
    before = digests(folder)
    plan_patch(folder).write()
    ended, whole = start(name, folder, script, output="whole")
    assert ended.code == 0, ended.text[-3000:]
    assert [record["round"] for record in records(whole)] == [0, 1, 2]
    weights = [[client["weight"] for client in record["clients"].values()] for record in records(whole)[1:]]
    assert all(sum(row) == pytest.approx(1) for row in weights)
    if (name, script) in KILLED:
        kill_and_resume(start, name, folder, script, whole)
    plan_unpatch(folder).write()
    assert digests(folder) == before


def kill_and_resume(start: Start, name: str, folder: Path, script: str, whole: Path) -> None:
    """The run once more, killed in round 2: it ends as ``whole`` did, or says at patch time already that it cannot."""
    ended, cut = start(name, folder, script, output="cut", cut=True)
    assert ended.code == -9, ended.text[-3000:]
    ended, _ = start(name, folder, script, "--resume_from", str(cut), output="cut")
    if name == "script_in_main":
        assert ended.code == 2
        assert "error: This script runs its rounds in a function: a run of it cannot be resumed." in ended.text
        assert "cannot be resumed" in plan_patch(folder).notes[-1]
    else:
        assert ended.code == 0, ended.text[-3000:]
        assert records(whole) == records(cut)
        (one,) = whole.glob("adapter/*.safetensors")
        assert one.read_bytes() == (cut / "adapter" / one.name).read_bytes()


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_the_run_would_refuse_is_refused_at_patch_time(variant, name, reason):
    folder = variant(name)
    before = digests(folder)
    with pytest.raises(UserError, match=reason):
        plan_patch(folder).write()
    assert digests(folder) == before


def test_a_round_without_save_model_freq_in_which_the_host_saves_is_passed_over(variant, start):
    folder = variant("no_save_model_freq")
    script = folder / "main_sft.py"
    script.write_text(script.read_text().replace("% 50 == 0", "% 1 == 0"))
    plan_patch(folder).write()
    ended, cut = start("no_save_model_freq", folder, "main_sft.py", output="cut", cut=True)
    assert ended.code == -9
    ended, _ = start("no_save_model_freq", folder, "main_sft.py", "--resume_from", str(cut), output="cut")
    assert ended.code == 0, ended.text[-3000:]
    assert {path.name for path in cut.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_a_flag_that_both_have_is_the_host_s_and_the_plugin_s_has_a_prefix(variant, start):
    folder = variant("own_attack_flag")
    plan_patch(folder).write()
    flags = ("--attack", "static_label_flipping", "--fedbias_attack", "sign_flip", "--attackers", "1")
    ended, output = start("own_attack_flag", folder, "main_sft.py", *flags, output="out")
    assert ended.code == 0, ended.text[-3000:]
    assert "--attack is this host's own flag; the plugin's is --fedbias_attack here." in ended.text
    assert output.name.endswith("_static_label_flipping")
    (attacked,) = {client["attack"] for record in records(output)[1:] for client in record["clients"].values()} - {None}
    assert attacked == "sign_flip"
    settings = records(output)[0]["settings"]
    assert (settings["attack"], settings["host_attack"]) == ("sign_flip", "static_label_flipping")


def test_a_template_of_the_host_s_own_gives_the_held_out_loss_too(variant, start):
    folder = variant("own_template")
    plan_patch(folder).write()
    ended, output = start("own_template", folder, "main_sft.py", output="out")
    assert ended.code == 0, ended.text[-3000:]
    assert all(record["global"]["heldout_loss"]["loss"] > 0 for record in records(output))
    ended, _ = start("own_template", folder, "main_sft.py", "--template", "llama4", output="other")
    assert ended.code == 2
    assert "--template 'llama4' is unknown to this host; choose one of " in ended.text
