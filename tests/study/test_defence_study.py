"""The study of every rule against every attack: its cells, and a file that asks of what is there."""

from collections import Counter

from fedbias_plugin.configs_folder import find_config
from fedbias_plugin.registry import names
from fedbias_plugin.study.settings import facts
from fedbias_plugin.study.study_file import find_study_file, fits, load_study_file
from fedbias_plugin.sweep.configs import load_experiment, load_model
from fedbias_plugin.sweep.plan import plan_runs

TINY = load_model(find_config("models", "tiny", "--model"))
EXPERIMENTS = tuple(f"defence{part}" for part in ("", "_attacks", "_clients", "_sizes", "_dialects", "_insider"))
RUNS = plan_runs(
    [load_experiment(find_config("experiments", name, "experiment")) for name in EXPERIMENTS], TINY, seeds=[1]
)
ARMS = [facts(run.settings, run.settings["aggregation"], "tiny") for run in RUNS]


def test_every_one_of_26_cells_has_all_eight_rules_and_the_new_one_with_steps_too():
    """But for ``fedavgw`` where clients hold equally many rows."""
    names_of_cell = ("scenario", "attack", "clients", "client_field")
    counts = Counter(tuple(arm.get(name) for name in names_of_cell) for arm in ARMS)
    for cell, count in counts.items():
        assert count == (9 if cell[1] in ("probe_gaming", "adaptive") or cell[3] is not None else 8), cell
    assert sum(arm["pair_steps"] > 0 for arm in ARMS) == len(counts) == 26
    uneven = {cell for cell in counts if cell[3] is not None}
    assert uneven == {
        ("custom", "none", "3 of 3", "size"),
        ("3C", "none", "3 of 3", "dialect"),
        ("custom", "none", "3 of 3", "dialect"),
    }
    cells = {cell[:3] for cell in counts if cell not in uneven}
    assert len(cells) == 23
    assert {attack for scenario, attack, _ in cells if scenario == "2B1C"} == {"none", *names("attack")[:6]}
    assert Counter(clients for *_, clients in cells) == {"3 of 3": 17, "10 of 10": 3, "5 of 10": 3}


def test_every_comparison_has_arms_on_both_sides_and_only_names_that_there_are():
    file = load_study_file(find_study_file([], "defence"))
    file.check_names((), ())
    for comparison in file.comparisons:
        own = [one for one in ARMS if fits(one, comparison.where)]
        for side in (comparison.from_, comparison.to):
            assert any(fits(one, side) for one in own), comparison.id
