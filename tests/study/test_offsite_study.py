"""The study of clients without the model: its arms, and a file that asks of what is there."""

from fedbias_plugin.configs_folder import find_config
from fedbias_plugin.study.settings import facts
from fedbias_plugin.study.study_file import find_study_file, fits, load_study_file
from fedbias_plugin.sweep.configs import load_experiment, load_model
from fedbias_plugin.sweep.plan import plan_runs

SIX = load_model(find_config("models", "tiny6", "--model"))
RUNS = plan_runs([load_experiment(find_config("experiments", "offsite", "experiment"))], SIX, seeds=[1])


def test_the_arms_are_the_full_model_two_drops_under_three_alignments_two_probes_and_mixed_devices():
    names = ("trainable", "aggregation", "ot_align", "ot_drop_ratio", "ot_probe", "ot_adapter_choices")
    arms = [facts(run.settings, run.settings["aggregation"], "tiny6") for run in RUNS]
    found = {tuple(arm.get(name) for name in names) for arm in arms}
    behind = [
        ("offsite", "plain", align, drop, "plugin", None)
        for align in ("none", "initial", "every_round")
        for drop in (0.2, 0.5)
    ]
    probed = [("offsite", "bama", "every_round", 0.5, probe, None) for probe in ("plugin", "emulator")]
    mixed = [("offsite", rule, "every_round", 0.5, "plugin", "1,2") for rule in ("plain", "bama")]
    full = [(None, rule, None, None, None, None) for rule in ("plain", "bama")]
    assert found == {*behind, *probed, *mixed, *full}
    assert len(RUNS) == 12


def test_the_run_without_emulators_is_that_of_the_paper_s_table_but_for_the_rows():
    table = plan_runs([load_experiment(find_config("experiments", "table1", "experiment"))], SIX, seeds=[1])
    of_table = {run.name: run.settings for run in table}
    ours = next(run.settings for run in RUNS if run.name == "fedavg_1B2C_plain_seed-1")
    assert ours["client_samples"] == 450
    assert of_table["fedavg_1B2C_plain_seed-1"] == {**ours, "client_samples": SIX.arguments["client_samples"]}


def test_every_comparison_has_arms_on_both_sides_and_only_names_that_there_are():
    file = load_study_file(find_study_file([], "offsite"))
    file.check_names((), ())
    known = [facts(run.settings, run.settings["aggregation"], "tiny6") for run in RUNS]
    for comparison in file.comparisons:
        own = [one for one in known if fits(one, comparison.where)]
        for side in (comparison.from_, comparison.to):
            assert any(fits(one, side) for one in own), comparison.id


def test_no_arm_is_left_out_of_a_pair_for_another():
    known = [facts(run.settings, run.settings["aggregation"], "tiny6") for run in RUNS]
    for comparison in load_study_file(find_study_file([], "offsite")).comparisons:
        for side in (comparison.from_, comparison.to):
            own = [one for one in known if fits(one, comparison.where) and fits(one, side)]
            places = [tuple(one.get(name) for name in comparison.within) for one in own]
            assert len(places) == len(set(places)), (comparison.id, side)


def test_every_arm_has_a_name_of_its_own():
    named = load_study_file(find_study_file([], "offsite")).arms
    found = [[name for name, facts_of in named.items() if fits(one, facts_of)] for one in map(_facts, RUNS)]
    assert sorted(name for (name,) in found) == sorted(named)


def _facts(run):
    return facts(run.settings, run.settings["aggregation"], "tiny6")
