"""The folder of a sweep: what is done, and whose folder it is."""

import json

import pytest
import yaml

from fedbias_plugin.errors import UserError
from fedbias_plugin.study.about import caveats
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.sweep.configs import Experiment, ModelConfig
from fedbias_plugin.sweep.folder import DONE, TO_DO, TO_RESUME, SweepFolder
from fedbias_plugin.sweep.plan import plan_runs
from tests.study.made_up import make_run

TINY = ModelConfig("tiny", "tiny", {"model_name_or_path": "tiny", "use_peft": True})
ONE = Experiment("one", "One", (1,), ({"scenario": ("3B", "3C")},))
DATA = {"crows_pairs": "aa", "clean": "bb"}


def made_run(folder, run, **changes):
    path = folder.run(run)
    path.mkdir(parents=True)
    settings = {**run.settings, "output_dir": str(path), **changes}
    (path / "run.json").write_text(json.dumps({"config": settings}))
    return path


def test_the_flags_of_every_run_are_written_as_a_file_that_fedbias_run_takes(tmp_path):
    folder, runs = SweepFolder(tmp_path / "sweep"), plan_runs([ONE], TINY)
    folder.write(TINY, DATA, [ONE], runs)
    assert yaml.safe_load(folder.config(runs[0]).read_text()) == dict(runs[0].flags)
    stored = json.loads((folder.path / "sweep.json").read_text())
    assert stored["experiments"] == {"one": {"title": "One", "runs": [run.name for run in runs]}}
    assert (stored["model"], stored["data"]) == ("tiny", DATA)


def test_a_second_sweep_of_the_folder_keeps_the_first_ones_runs_listed(tmp_path):
    folder, runs = SweepFolder(tmp_path / "sweep"), plan_runs([ONE], TINY)
    folder.write(TINY, DATA, [ONE], runs)
    two = Experiment("two", "Two", (1,), ({"scenario": ("3B",), "fed_alg": ("scaffold",)},))
    folder.check(TINY, DATA, plan_runs([two], TINY))
    folder.write(TINY, DATA, [two], plan_runs([two], TINY))
    assert list(json.loads((folder.path / "sweep.json").read_text())["experiments"]) == ["one", "two"]


def test_other_seeds_of_an_experiment_are_planned_beside_those_of_before(tmp_path):
    folder, runs = SweepFolder(tmp_path / "sweep"), plan_runs([ONE], TINY)
    folder.write(TINY, DATA, [ONE], runs)
    more = plan_runs([ONE], TINY, seeds=[1, 7])
    folder.write(TINY, DATA, [ONE], more)
    folder.write(TINY, DATA, [ONE], plan_runs([ONE], TINY, seeds=[7]))
    (listed,) = json.loads((folder.path / "sweep.json").read_text())["experiments"].values()
    assert listed["runs"] == [run.name for run in more]
    # The report of the sweep that is half done says so.
    make_run(folder.run(runs[0]), seed=1)
    (said,) = caveats(load_study([folder.path]), [folder.path])[:1]
    assert said.startswith("1 of the 4 runs that sweep plans are in this report (one: 1 of 4)")


def test_a_run_is_to_do_then_to_go_on_with_then_done(tmp_path):
    folder, run = SweepFolder(tmp_path), plan_runs([ONE], TINY)[0]
    assert folder.state(run) == TO_DO
    path = made_run(folder, run)
    assert folder.state(run) == TO_DO  # died before its first checkpoint
    (path / "checkpoints/start").mkdir(parents=True)
    (path / "metrics.jsonl").write_text('{"round": 0}\n{"round": 1}\n{"round": 2')
    assert folder.state(run) == TO_RESUME
    assert folder.rounds(run) == 1
    (path / "summary.json").write_text("{}")
    assert folder.state(run) == DONE


def test_the_folder_of_another_sweep_is_refused_with_what_is_different(tmp_path):
    folder, runs = SweepFolder(tmp_path / "sweep"), plan_runs([ONE], TINY)
    folder.write(TINY, DATA, [ONE], runs)
    with pytest.raises(UserError, match="is the sweep of the model 'tiny', not of 'big'"):
        folder.check(ModelConfig("big", "big", {}), DATA, runs)
    with pytest.raises(UserError, match=r"a sweep with other data \(clean\)"):
        folder.check(TINY, {**DATA, "clean": "cc"}, runs)
    made_run(folder, runs[0], client_samples=60)
    with pytest.raises(
        UserError, match=r"3B_plain_seed-1 was made with other flags \(client_samples 60 there, 300 now\)"
    ):
        folder.check(TINY, DATA, runs)


def test_flags_that_move_no_number_may_differ(tmp_path):
    folder, runs = SweepFolder(tmp_path / "sweep"), plan_runs([ONE], TINY)
    made_run(folder, runs[0], output_dir="elsewhere", track="jsonl,wandb", checkpoint_every=5)
    folder.check(TINY, DATA, runs)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds 'thesis.tex' and no sweep"):
        SweepFolder(tmp_path).check(TINY, DATA, plan_runs([ONE], TINY))


@pytest.mark.parametrize(
    "content",
    [
        *("", "[", "[]", "{}", '{"model": 1, "data": {}, "experiments": {}}'),
        *(f'{{"model": "tiny", "data": {{}}, "experiments": {{"one": {one}}}}}' for one in ("3", "{}", '{"runs": 1}')),
    ],
)
def test_a_damaged_sweep_file_is_named(content, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep.json is damaged .*delete it"):
        SweepFolder(tmp_path).check(TINY, DATA, [])


def test_what_one_sweep_read_is_still_known_after_another_that_did_not_read_it(tmp_path):
    folder, runs = SweepFolder(tmp_path / "sweep"), plan_runs([ONE], TINY)
    folder.write(TINY, {**DATA, "stereoset": "s1"}, [ONE], runs)
    folder.write(TINY, DATA, [ONE], runs)
    with pytest.raises(UserError, match=r"a sweep with other data \(stereoset\)"):
        folder.check(TINY, {**DATA, "stereoset": "s2"}, runs)
    folder.check(TINY, {**DATA, "clean other.json": "x"}, runs)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; give a folder"):
        SweepFolder(tmp_path / "file").check(TINY, DATA, [])


@pytest.mark.parametrize("content", ["{", '{"config": {}}'])
def test_a_damaged_run_file_is_named(content, tmp_path):
    folder, runs = SweepFolder(tmp_path / "sweep"), plan_runs([ONE], TINY)
    (made_run(folder, runs[0]) / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run.json is damaged .*move .* away"):
        folder.check(TINY, DATA, runs)
