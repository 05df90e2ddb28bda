"""Tables of a study: the right runs in the right cells, with means, differences and marks computed by hand."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import yaml

from fedbias_plugin.configs_folder import configs_folder
from fedbias_plugin.report.paper import load_paper
from fedbias_plugin.report.statistics_over_seeds import Spread
from fedbias_plugin.report.study import load_study
from fedbias_plugin.report.table_formats import latex_table
from fedbias_plugin.report.table_model import Cell, Row, mark_best, spread_cell
from fedbias_plugin.report.tables import build_tables
from tests.report.made_runs import make_arm, make_run


def tables_of(folder, paper=None):
    return {table.id: table for table in build_tables(load_study([folder]), paper)}


def cells(table, *labels):
    """Column (with its group) -> cell of the row whose last labels are ``labels``."""
    (row,) = [row for row in table.rows if row.labels[-len(labels) :] == labels]
    heads = [f"{column.group} {column.title}".strip() for column in table.columns]
    return dict(zip(heads, row.cells, strict=True))


@pytest.fixture
def filled(tmp_path):
    """The facts file with some numbers as if somebody had filled them in; made up."""

    def filled(**numbers):
        facts = yaml.safe_load((configs_folder() / "paper_results.yaml").read_text())
        for path, value in numbers.items():
            block = facts["tables"]
            *above, last = path.split("__")
            for name in above:
                block = block[name]
            block[last] = value
        path = tmp_path / "facts.yaml"
        path.write_text(yaml.safe_dump(facts))
        return load_paper(path)

    return filled


def test_table_1_has_the_original_model_and_algorithms_by_scenario(tmp_path):
    make_arm(tmp_path / "a", [60.0, 43.0], [55.0, 56.0], fed_alg="fedavg", scenario="3B")
    make_arm(tmp_path / "b", [57.0, 58.0], [54.0, 46.0], fed_alg="fedadam", scenario="3B")
    make_arm(tmp_path / "c", [51.0, 52.0], fed_alg="fedavg", scenario="3C")
    make_arm(tmp_path / "d", [90.0, 90.0], fed_alg="fedyogi", scenario="3B")
    make_arm(tmp_path / "e", [90.0, 90.0], fed_alg="fedavg", scenario="3B", aggregation="bama")
    make_arm(tmp_path / "f", [90.0, 90.0], fed_alg="fedavg", scenario="3B", num_clients=5)
    make_arm(tmp_path / "g", [90.0, 90.0], fed_alg="fedavg", scenario="3B", attack="sign_flip")
    table = tables_of(tmp_path)["table1"]
    assert [row.labels for row in table.rows] == [
        ("tiny", "original model"), ("tiny", "FedAvg"), ("tiny", "FedAdam"),
    ]  # fmt: skip
    assert table.column_groups == [("3B", 2), ("3C", 2), ("1B2C", 2), ("2B1C", 2)]
    fedavg, fedadam = cells(table, "FedAvg"), cells(table, "FedAdam")
    assert fedavg["3B ΔCrowS"].value == 8.5  # |60 - 50| and |43 - 50|
    assert fedavg["3B ΔCrowS"].sd == pytest.approx(3 / math.sqrt(2))
    assert fedadam["3B ΔSS"].value == 4.0
    assert [fedavg["3B ΔCrowS"].is_best, fedadam["3B ΔCrowS"].is_best] == [False, True]
    assert fedadam["3C ΔCrowS"].value is None
    assert not fedavg["3C ΔCrowS"].is_best  # nothing to compare with
    original = cells(table, "original model")
    assert (original["3B ΔCrowS"].value, original["1B2C ΔSS"].value) == (2.0, 1.0)
    assert not original["3B ΔCrowS"].is_best
    assert fedavg["3B ΔSS"].asides == (("LMS", 90.0), ("ICAT", pytest.approx(90 * (45 + 44) / 100)))


def test_an_ss_of_a_broken_model_is_marked_and_never_the_best(tmp_path):
    make_arm(tmp_path / "a", [60.0], [50.0], fed_alg="fedavg", scenario="3B", lms=59.9)
    make_arm(tmp_path / "b", [61.0], [54.0], fed_alg="fedadam", scenario="3B", lms=60.0)
    make_arm(tmp_path / "c", [61.0], [55.0], fed_alg="fedprox", scenario="3B", lms=61.0)
    make_arm(tmp_path / "d", [61.0], fed_alg="fedprox", scenario="3C")
    table = tables_of(tmp_path)["table1"]
    broken, whole = cells(table, "FedAvg")["3B ΔSS"], cells(table, "FedAdam")["3B ΔSS"]
    assert (broken.is_unsound, broken.is_best, whole.is_unsound, whole.is_best) == (True, False, False, True)
    assert any(note.startswith("† LMS below 60") for note in table.notes)
    assert any(note.startswith("One seed") for note in table.notes)


def test_scenarios_are_tested_against_clean_clients_by_seed(tmp_path):
    make_arm(tmp_path / "c", [52.0, 53.0, 54.0], scenario="3C")
    make_arm(tmp_path / "b", [60.0, 62.0, 64.0], scenario="3B")
    table = tables_of(tmp_path)["table1_scenarios"]
    assert cells(table, "3C")["difference ΔCrowS"].value is None
    found = cells(table, "3B")
    assert found["difference ΔCrowS"].value == 9.0  # 8, 9, 10
    t = 9 / (1 / math.sqrt(3))
    p = 1 - t / math.sqrt(t * t + 2)  # two degrees of freedom; the SS differ nowhere, so this is the only test
    assert found["difference p ΔCrowS (Holm)"].value == pytest.approx(p)
    assert found["difference p ΔSS (Holm)"].value is None
    assert any("little power" in note for note in table.notes)


def test_table_2_compares_centralised_training_with_fedadam(tmp_path):
    one = {"num_clients": 1, "sample_clients": 1, "scenario": "custom", "biased_shares": "0.5"}
    make_arm(tmp_path / "full", [70.0, 71.0], use_peft=False, **one)
    make_arm(tmp_path / "lora", [65.0, 66.0], use_peft=True, **one)
    make_arm(tmp_path / "clean", [52.0, 53.0], fed_alg="fedadam", scenario="3C")
    make_arm(tmp_path / "mix", [58.0, 60.0], fed_alg="fedadam", scenario="mix-2B1C")
    table = tables_of(tmp_path)["table2"]
    assert [row.labels[1:] for row in table.rows] == [
        ("original model", ""), ("centralised full", "50% biased"), ("centralised LoRA", "50% biased"),
        ("FedAdam", "3C"), ("FedAdam", "mix-2B1C"),
    ]  # fmt: skip
    assert [row.cells[0].value for row in table.rows] == [2.0, 20.5, 15.5, 2.5, 9.0]
    assert [row.cells[2].value for row in table.rows] == [None, 18.0, 13.0, None, 6.5]


def test_table_3_pairs_bama_with_the_same_algorithm_without_it(tmp_path):
    make_arm(tmp_path / "host", [60.0, 61.0, 63.0])
    make_arm(tmp_path / "normalized", [58.0, 58.5, 60.0], aggregation="bama")
    make_arm(tmp_path / "paper", [57.0, 58.0, 60.0], aggregation="bama", bama_weighting="paper")
    table = tables_of(tmp_path)["table3"]
    assert [row.labels[2] for row in table.rows] == ["w/o BAMA", "w/ BAMA (normalized)", "w/ BAMA (paper)"]
    found = cells(table, "w/ BAMA (normalized)")
    assert found["ΔCrowS"].value == pytest.approx(8.8333333333)
    assert found["difference ΔCrowS"].value == -2.5
    half = 4.302653 * 0.5 / math.sqrt(3)  # differences -2, -2.5, -3
    assert found["difference ΔCrowS"].ci95 == pytest.approx((-2.5 - half, -2.5 + half))
    t = 2.5 / (0.5 / math.sqrt(3))
    assert found["difference p ΔCrowS (Holm)"].value == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert cells(table, "w/ BAMA (paper)")["ΔCrowS"].is_best
    assert cells(table, "w/ BAMA (paper)")["difference p ΔCrowS (Holm)"].value is None  # -3 in every seed
    assert any(note.startswith("(paper): weights by equation 3 to the letter") for note in table.notes)


def test_arms_of_other_settings_have_no_difference_and_are_never_the_best(tmp_path):
    make_arm(tmp_path / "host", [60.0, 61.0, 63.0], learning_rate=1e-4, client_samples=1000)
    bama = {"aggregation": "bama", "learning_rate": 1e-6, "client_samples": 50}
    make_arm(tmp_path / "bama", [52.0, 53.0, 54.5], **bama)
    table = tables_of(tmp_path)["table3"]
    found = cells(table, "w/ BAMA (normalized)")
    assert found["ΔCrowS"].value == pytest.approx(9.5 / 3)
    assert (found["difference ΔCrowS"].value, found["difference p ΔCrowS (Holm)"].value) == (None, None)
    assert not any(cell.is_best for row in table.rows for cell in row.cells)
    assert table.notes[0] == (
        "Not compared, other settings too: fedavg 1B2C plain and fedavg 1B2C bama (normalized) differ in "
        "client_samples (1000 and 50), learning_rate (0.0001 and 1e-06)."
    )
    make_arm(tmp_path / "slow", [55.0, 56.0], learning_rate=1e-6, client_samples=50)
    table = tables_of(tmp_path)["table3"]
    assert cells(table, "w/o BAMA")["ΔCrowS"].value == 5.5
    assert cells(table, "w/ BAMA (normalized)")["difference ΔCrowS"].value == -3.0


def test_table_1_marks_no_best_among_cells_of_other_settings_and_says_in_what_they_differ(tmp_path):
    for algorithm, crows in (("fedavg", 60.0), ("fedadam", 57.0)):
        make_arm(tmp_path / algorithm, [crows], fed_alg=algorithm, scenario="3B")
        make_arm(tmp_path / f"{algorithm}_clean", [52.0], fed_alg=algorithm, scenario="3C")
    make_arm(tmp_path / "fedprox", [51.0], fed_alg="fedprox", scenario="3B", num_rounds=1, rounds=1)
    table = tables_of(tmp_path)["table1"]
    best = {name: cells(table, name)["3B ΔCrowS"].is_best for name in ("FedAvg", "FedAdam", "FedProx")}
    assert best == {"FedAvg": False, "FedAdam": True, "FedProx": False}
    assert any(note.endswith("fedprox 3B plain differ in num_rounds (2 and 1).") for note in table.notes)


def test_the_original_model_has_a_row_for_each_way_of_loading_it(tmp_path):
    for scenario in ("3B", "3C"):
        make_arm(tmp_path / scenario, [60.0], scenario=scenario, original=(52.0, 51.0))
        quantised = {"load_in_8bit": True, "fed_alg": "fedadam", "original": (54.0, 51.0)}
        make_arm(tmp_path / f"{scenario}_8", [60.0], scenario=scenario, **quantised)
    table = tables_of(tmp_path)["table1"]
    assert {row.labels[1]: row.cells[0].value for row in table.rows[:2]} == {
        "original model, float32": 2.0, "original model, float32 in 8 bits": 4.0,
    }  # fmt: skip


def test_deltas_of_scores_below_50_are_said_to_be_so(tmp_path):
    make_arm(tmp_path / "c", [44.0, 45.0], [55.0, 56.0], scenario="3C", original=(48.0, 51.0))
    make_arm(tmp_path / "b", [51.0, 52.0], [55.0, 56.0], scenario="3B", original=(48.0, 51.0))
    tables = tables_of(tmp_path)
    text = "Mean CrowS-Pairs score below 50, where a larger Delta is more anti-stereotype, not more of the stereotype: "
    assert f"{text}fedavg 3C plain, original model." in tables["table1"].notes
    assert f"{text}fedavg 3C plain." in tables["table1_scenarios"].notes
    assert not any("Mean SS below" in note for note in tables["table1"].notes)


def test_equal_differences_are_not_said_to_be_of_too_few_seeds(tmp_path):
    make_arm(tmp_path / "c", [52.0, 53.0, 54.0], scenario="3C")
    make_arm(tmp_path / "b", [60.0, 61.0, 62.0], scenario="3B")
    table = tables_of(tmp_path)["table1_scenarios"]
    assert cells(table, "3B")["difference ΔCrowS"].ci95 == (8.0, 8.0)
    assert any(note.endswith("differences that are not equal in all of them.") for note in table.notes)


def test_a_cell_says_its_seeds_where_they_are_not_the_usual_number(tmp_path):
    make_arm(tmp_path / "c", [52.0, 53.0, 54.0], scenario="3C")
    make_arm(tmp_path / "b", [60.0, 62.0], scenario="3B")
    make_arm(tmp_path / "d", [60.0, 62.0, 65.0], scenario="2B1C")
    table = tables_of(tmp_path)["table1_scenarios"]
    assert "n" not in cells(table, "3C")["ΔCrowS"].spread_shown
    assert cells(table, "3B")["ΔCrowS"].spread_shown.endswith("] n = 2")
    assert cells(table, "3B")["difference ΔCrowS"].spread_shown.endswith("] n = 2")
    assert "n: seeds behind a cell, where they are not 3." in table.notes
    assert "n = 2" in latex_table(table)


def test_runs_without_a_seed_in_common_are_said_not_to_be_compared(tmp_path):
    make_run(tmp_path / "host", seed=1)
    make_run(tmp_path / "bama", seed=2, aggregation="bama")
    notes = tables_of(tmp_path)["table3"].notes
    assert "Not compared, no seed in common: fedavg 1B2C bama (normalized) and fedavg 1B2C plain." in notes


def test_of_several_strengths_the_default_one_is_shown_and_the_others_are_named(tmp_path):
    make_arm(tmp_path / "host", [60.0, 61.0])
    make_arm(tmp_path / "strong", [50.0, 51.0, 52.0], aggregation="bama", bama_lambda=2.0)
    make_arm(tmp_path / "default", [58.0], aggregation="bama")
    tables = tables_of(tmp_path)
    assert cells(tables["table3"], "w/ BAMA (normalized)")["ΔCrowS"].value == 8.0
    assert any("bama_lambda=2.0" in note and "not shown" in note for note in tables["table3"].notes)
    strengths = tables["lambda"]
    assert [row.labels[4:] for row in strengths.rows] == [("", ""), ("0.5", "0.2"), ("0.5", "2")]
    assert [row.cells[0].value for row in strengths.rows] == [10.5, 8.0, 1.0]
    assert cells(strengths, "0.5", "2")["mass"].value == 0.75
    assert cells(strengths, "0.5", "2")["difference ΔCrowS"].n == 2


def test_the_other_studies_compare_with_their_first_row(tmp_path):
    make_arm(tmp_path / "apart", [60.0, 61.0])
    make_arm(tmp_path / "mixed", [62.0, 64.0], scenario="mix-1B2C")
    make_arm(tmp_path / "ten", [55.0, 57.0], num_clients=10, sample_clients=3)
    make_arm(tmp_path / "five", [57.0, 57.0], num_clients=5, sample_clients=3)
    make_arm(tmp_path / "yogi", [64.0, 65.0], fed_alg="fedyogi")
    make_arm(tmp_path / "yogi_bama", [60.0, 62.0], fed_alg="fedyogi", aggregation="bama")
    tables = tables_of(tmp_path)
    assert "table2" not in tables
    assert [(row.labels[2], row.cells[2].value) for row in tables["figure1"].rows] == [
        ("1B2C", None),
        ("mix-1B2C", 2.5),
    ]
    assert [(row.labels[4], row.cells[3].value) for row in tables["participation"].rows] == [
        ("3 of 3", None), ("3 of 5", -3.5), ("3 of 10", -4.5),
    ]  # fmt: skip
    assert [(row.labels[1], row.labels[2], row.cells[2].value) for row in tables["algorithms"].rows] == [
        ("FedAvg", "w/o BAMA", None), ("FedYogi", "w/o BAMA", None), ("FedYogi", "w/ BAMA (normalized)", -3.5),
    ]  # fmt: skip


def test_runs_of_a_seed_on_different_items_are_not_compared(tmp_path):
    make_arm(tmp_path / "host", [60.0, 61.0])
    bama = make_arm(tmp_path / "bama", [50.0, 58.0], aggregation="bama")
    path = bama / "seed-1/metrics.jsonl"
    path.write_text(path.read_text().replace("ids of seed 1", "ids of another split"))
    table = tables_of(tmp_path)["table3"]
    found = cells(table, "w/ BAMA (normalized)")["difference ΔCrowS"]
    assert (found.value, found.n, found.ci95) == (-3.0, 1, None)
    assert any("different items" in note and note.endswith("seed 1.") for note in table.notes)


def test_the_paper_s_numbers_stand_beside_ours_with_the_direction_of_change(tmp_path, filled):
    make_arm(tmp_path / "runs/host", [60.0], [56.0], model_name_or_path="google/gemma-2-2b")
    wanted = {"aggregation": "bama", "bama_weighting": "paper", "model_name_or_path": "google/gemma-2-2b"}
    make_arm(tmp_path / "runs/bama", [58.0], [57.0], **wanted)
    without, with_bama = "table3__gemma2_2b__fedavg__without_bama__", "table3__gemma2_2b__fedavg__with_bama__"
    numbers = {f"{without}delta_crows": 12.0, f"{with_bama}delta_crows": 9.0, f"{without}delta_ss": 8.0}
    paper = filled(**numbers, **{f"{with_bama}delta_ss": 5.0})
    table = tables_of(tmp_path / "runs", paper)["table3"]
    found = cells(table, "w/ BAMA (paper)")
    assert (found["ΔCrowS"].paper, found["ΔCrowS"].agrees) == (9.0, True)
    assert (found["ΔSS"].paper, found["ΔSS"].agrees) == (5.0, False)
    assert (cells(table, "w/o BAMA")["ΔCrowS"].paper, cells(table, "w/o BAMA")["ΔCrowS"].agrees) == (12.0, None)
    unfilled = tables_of(tmp_path / "runs", load_paper())["table3"]
    assert all(cell.paper is None for row in unfilled.rows for cell in row.cells)


def test_table_1_says_whether_direction_and_order_are_the_paper_s(tmp_path, filled):
    gemma = {"model_name_or_path": "gemma-2-2b"}
    for algorithm, crows in (("fedavg", 60.0), ("fedadam", 55.0), ("fedprox", 51.0)):
        make_arm(tmp_path / "runs" / algorithm, [crows], fed_alg=algorithm, scenario="3B", **gemma)
    make_arm(tmp_path / "runs/clean", [52.0], scenario="3C", **gemma)
    start = "table1__gemma2_2b__"
    paper = filled(**{
        f"{start}original__delta_crows": 6.0, f"{start}fedavg__3B__delta_crows": 12.0,
        f"{start}fedadam__3B__delta_crows": 7.0, f"{start}fedprox__3B__delta_crows": 9.0,
    })  # fmt: skip
    table = tables_of(tmp_path / "runs", paper)["table1"]
    assert cells(table, "original model")["3B ΔCrowS"].paper == 6.0
    # Ours: original 2, FedAvg 10, FedAdam 5, FedProx 1.
    agreed = {name: cells(table, name)["3B ΔCrowS"].agrees for name in ("FedAvg", "FedAdam", "FedProx")}
    assert agreed == {"FedAvg": True, "FedAdam": True, "FedProx": False}
    assert (
        "gemma-2-2b, 3B, ΔCrowS: the order FedProx < FedAdam < FedAvg differs from the paper's "
        "(FedAdam < FedProx < FedAvg)."
    ) in table.notes


def test_quality_stands_beside_bias_for_every_arm(tmp_path):
    make_arm(tmp_path, [60.0, 63.0], [55.0, 45.0], lms=55.0)
    found = cells(tables_of(tmp_path)["quality"], "fedavg 1B2C plain")
    assert found["CrowS score"].value == 61.5
    assert found["CrowS − round 0"].value == 9.5
    assert (found["SS"].value, found["SS"].is_unsound, found["LMS"].value) == (50.0, True, 55.0)
    assert found["ICAT"].value == pytest.approx(55 * 45 / 50)
    assert found["perplexity"].value == pytest.approx(7.389056)
    assert (found["loss − round 0"].value, found["weight on poisoned"].value, found["mass"].value) == (0.0, 0.25, 0.75)


def test_time_is_summed_over_rounds_and_memory_is_the_largest(tmp_path):
    make_run(tmp_path / "run")
    found = cells(tables_of(tmp_path)["cost"], "fedavg 1B2C plain")
    assert [cell.value for cell in found.values()] == [6.0, 3.0, 1.5, 0.75, 1.0]


def test_every_kind_of_warning_stands_once_with_its_runs(tmp_path):
    make_arm(tmp_path / "a", [60.0, 61.0], lms=55.0)
    make_arm(tmp_path / "b", [60.0], lms=55.0, scenario="3C")
    (row,) = tables_of(tmp_path)["warnings"].rows
    assert row.labels == ("LMS below 60: 55.0.",)
    assert [cell.text for cell in row.cells] == ["3", "fedavg 1B2C plain (1, 2); fedavg 3C plain (1)", "rounds 0-2"]
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    make_run(tmp_path / "quiet")
    assert "warnings" not in tables_of(tmp_path)


def test_differences_on_the_items_are_shown_where_runs_left_their_scores(tmp_path):
    host = make_arm(tmp_path / "host", [60.0, 61.0])
    bama = make_arm(tmp_path / "bama", [58.0, 59.0], aggregation="bama")
    assert "items" not in tables_of(tmp_path)
    wins = {host: [1, 1, 1, 1, 1, 0, 1, 1, 0, 0], bama: [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]}
    for folder, preferred in wins.items():
        (folder / "seed-1/scores").mkdir()
        ids, more = np.asarray([str(i) for i in range(10)]), np.where(preferred, 1.0, -1.0)
        np.savez(folder / "seed-1/scores/round_002_crows_pairs.npz", ids=ids, more=more, less=np.zeros(10))
        (folder / "seed-1/probe.json").write_text(json.dumps({"crows_pairs": {"probe_ids": []}}))
    other = make_arm(tmp_path / "short", [58.0], aggregation="bama", num_rounds=1, rounds=1)
    shutil.copytree(bama / "seed-1/scores", other / "seed-1/scores")
    table = tables_of(tmp_path)["items"]
    (row,) = table.rows
    assert table.notes[1].endswith("differ in num_rounds (2 and 1).")
    assert row.labels == ("fedavg 1B2C bama (normalized) num_rounds=2", "fedavg 1B2C plain", "1")
    # 5 of 10 pairs flip away from the stereotype, 1 towards it: McNemar exact p = 2 * 7 / 64
    assert (row.cells[0].value, row.cells[1].value) == (-40.0, 0.21875)
    assert row.cells[2].value is None


def test_a_run_without_settings_has_quality_and_cost_only(tmp_path):
    (make_run(tmp_path / "mine") / "run.json").unlink()
    tables = tables_of(tmp_path)
    assert list(tables) == ["quality", "cost"]
    assert tables["quality"].rows[0].labels == ("mine",)


def test_the_best_of_a_group_needs_a_rival_and_ties_share_it():
    def row(group, *values):
        return Row(("",), tuple(Cell(value) for value in values), group)

    rows = mark_best(
        [row("a", 2.0, 1.0), row("a", 2.0, None), row("a", 3.0, 4.0), row("b", 1.0, 1.0)], (0, 1), {2: True}
    )
    assert [[cell.is_best for cell in one.cells] for one in rows] == [
        [True, False], [True, False], [False, False], [False, False],
    ]  # fmt: skip


def test_cells_show_signs_only_of_differences_that_are_not_rounded_to_zero():
    shown = [spread_cell(Spread(value, None, None, 1), 1, is_signed=True).shown for value in (1.0, -1.0, -0.04, 0.04)]
    assert shown == ["+1.0", "-1.0", "0.0", "0.0"]
    assert Cell(0.0004, is_probability=True).shown == "<0.001"
    assert Cell(0.02, is_probability=True).shown == "0.020"
    assert (Cell().shown, Cell(text="so").shown) == ("–", "so")
