"""The study of privacy and counterfactual rows: the paper's cells beside ours, and claims judged on made-up runs."""

from __future__ import annotations

import random

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.study.pivot import pivot_tables
from fedbias_plugin.study.report import write_report
from fedbias_plugin.study.shares import ratio, share_tables
from fedbias_plugin.study.study_file import find_study_file, load_study_file
from fedbias_plugin.study.verdicts import CONTRADICTED, DIFFERENT, NOT_SIGNIFICANT, SUPPORTED
from tests.study.made_up import edit_json, make_arm

STUDY = load_study_file(find_study_file([], "dp_cda"))
EPSILONS = (3.0, 10.0, 20.0)


def arm(folder, toxicity, l1_gap, place=0, **changes):
    """Three runs whose models end at a gap of toxicity and of gradient norms; CrowS and SS differ by chance alone."""
    draw = random.Random(place)
    jitter = [0.0004 * (2 * draw.random() - 1) for _ in range(3)]
    scores = [60 + 1000 * one for one in jitter]
    settings = {"scenario": "3C", "dp_epsilon": None, "cda_ratio": 0.0, "fed_alg": "fedavg"} | changes
    if settings["dp_epsilon"] is not None:
        settings = {"dp_max_grad_norm": 0.1} | settings
    make_arm(folder, scores, [55 + 1000 * one for one in jitter], **settings)
    for seed, shift in enumerate(jitter, 1):

        def add(line, shift=shift):
            start, end = (0.0178, 2.0), (toxicity + shift, l1_gap + 100 * shift)
            value, gap = end if line["round"] == 2 else start
            common = {"ideal": 0.0, "n": 90, "items": "all", "ci95": [value - 0.01, value + 0.01]}
            line["global"]["toxicity"] = {"value": value, "noise_floor": 0.002, **common}
            norms = {"l1_female": 20 + gap, "l1_male": 20.0, "l1_gap": gap}
            line["global"]["gender_perplexity"] = {"value": 0.1 + shift, "noise_floor": 0.01, **norms, **common}

        edit_json(folder / f"seed-{seed}/metrics.jsonl", add)


def write_study(folder, amplified=0.05, taken_back=0.02, widened=0.0, **model):
    """No privacy, three epsilons, and each with all copies; C of .01 and 1."""
    arm(folder / "none", 0.0161, 2.0, **model)
    for place, epsilon in enumerate(EPSILONS, 1):
        high = 0.0161 + amplified
        arm(folder / f"dp{epsilon}", high, 2.0 + widened, place, dp_epsilon=epsilon, **model)
        arm(folder / f"cda{epsilon}", high - taken_back, 2.0, place + 3, dp_epsilon=epsilon, cda_ratio=1.0, **model)
    for place, norm in enumerate((0.01, 1.0), 7):
        own = {"dp_epsilon": 10.0, "dp_max_grad_norm": norm, **model}
        arm(folder / f"clip{norm}", 0.0161 + amplified * (place - 6), 2.0, place, **own)
    return load_study([folder])


def words(study):
    """Comparison -> metric -> verdict."""
    answers, silent = answer_all(study, STUDY)
    assert silent == []
    return {one.comparison.id: {verdict.metric: verdict.word for verdict in one.verdicts} for one in answers}


def toxicity_table(study):
    return next(table for table in pivot_tables(study, STUDY) if table.id == "dp_toxicity")


def test_on_distilgpt2_the_paper_s_cells_stand_beside_ours_with_their_inconsistency(tmp_path):
    study = write_study(tmp_path, model_name_or_path="distilbert/distilgpt2")
    table = toxicity_table(study)
    found = {row.labels[1:]: row.cells[0] for row in table.rows}
    papers = {labels: cell.paper for labels, cell in found.items()}
    assert papers == {
        ("original model", ""): 0.0178, ("FedAvg", "off"): 0.0161, ("FedAvg", "3"): 0.0516, ("FedAvg", "10"): 0.0788,
        ("FedAvg", "20"): 0.0868,
    }  # fmt: skip
    assert found["FedAvg", "3"].value == pytest.approx(0.0661, abs=1e-4)
    assert [found["FedAvg", which].agrees for which in ("off", "3", "20")] == [True, True, True]
    assert any(note.startswith("Of the paper: The gap grows with epsilon") for note in table.notes)
    assert not any("--dp_max_grad_norm" in note or "Not comparable" in note for note in table.notes)


def test_on_another_model_there_is_no_number_of_the_paper(tmp_path):
    table = toxicity_table(write_study(tmp_path))
    assert len(table.rows) == 5
    assert not any(cell.paper for row in table.rows for cell in row.cells)
    assert not any("paper" in note for note in table.notes)


def test_a_table_of_what_no_run_measured_is_left_out(tmp_path):
    make_arm(tmp_path / "none", [60.0, 61.0], scenario="3C", dp_epsilon=None, cda_ratio=0.0)
    make_arm(tmp_path / "dp", [60.0, 61.0], scenario="3C", dp_epsilon=3.0, dp_max_grad_norm=0.1, cda_ratio=0.0)
    shown = [table.id for table in pivot_tables(load_study([tmp_path]), STUDY)]
    assert "dp_toxicity" not in shown
    assert "dp_bias" in shown


def test_arms_are_told_apart_by_epsilon_c_and_share_of_copies(tmp_path):
    study = write_study(tmp_path)
    assert "fedavg 3C plain cda_ratio=0.0, dp_epsilon=none" in [one.label for one in study.arms]
    labels = [one.label for one in study.called(STUDY.names).arms]
    assert len(labels) == 9
    assert "fedavg 3C plain CDA=0, ε=off" in labels
    assert "fedavg 3C plain CDA=1, ε=3, C=0.1" in labels
    assert "fedavg 3C plain CDA=0, ε=10, C=0.01" in labels


def test_amplification_and_what_copies_take_back_are_supported_and_a_gap_that_stays_is_a_null_result(tmp_path):
    found = words(write_study(tmp_path))
    assert found["dp"]["toxicity"] == SUPPORTED
    assert found["cda"]["toxicity"] == SUPPORTED
    assert found["gradients"] == {"gender_perplexity/l1_gap": NOT_SIGNIFICANT}
    assert found["clipping"]["toxicity"] in (DIFFERENT, NOT_SIGNIFICANT)
    others = {metric: word for name in ("dp", "cda") for metric, word in found[name].items() if metric != "toxicity"}
    assert set(others) == {"crows_pairs", "stereoset", "gender_perplexity"}
    assert SUPPORTED not in others.values()


def test_a_study_without_any_difference_says_so_and_one_the_other_way_contradicts(tmp_path):
    null = words(write_study(tmp_path / "null", amplified=0.0, taken_back=0.0))
    assert {null["dp"]["toxicity"], null["cda"]["toxicity"]} == {NOT_SIGNIFICANT}
    other = words(write_study(tmp_path / "other", amplified=0.03, taken_back=-0.02, widened=1.5))
    assert (other["cda"]["toxicity"], other["gradients"]["gender_perplexity/l1_gap"]) == (CONTRADICTED, SUPPORTED)


def test_the_pairs_are_every_epsilon_against_none_at_c_of_a_tenth(tmp_path):
    answers = {one.comparison.id: one for one in answer_all(write_study(tmp_path), STUDY)[0]}
    assert [pair.name for pair in answers["dp"].pairs] == ["epsilon 3.0", "epsilon 10.0", "epsilon 20.0"]
    assert {pair.arm.facts["dp_max_grad_norm"] for pair in answers["dp"].pairs} == {0.1}
    assert [pair.name for pair in answers["clipping"].pairs] == ["C 0.01", "C 1.0"]
    assert answers["dp"].notes == answers["cda"].notes == answers["clipping"].notes == ()


def test_the_report_is_written_and_its_null_result_is_named(tmp_path):
    write_study(tmp_path / "runs", model_name_or_path="distilbert/distilgpt2")
    folder = write_report([tmp_path / "runs"], tmp_path / "report", study_file="dp_cda").parent
    text = (folder / "report.md").read_text()
    assert text.startswith("# Bias of privately fine-tuned models\n")
    assert "Supported (2 of 3)" in text
    assert "Open (1 of 3): not significant" in text
    assert "gender perplexity, l1 gap" in text
    assert {"dp_toxicity.csv", "dp_bias.csv", "dp_gradients.csv", "dp_clipping.csv"} <= {
        path.name for path in (folder / "tables").iterdir()
    }


def test_a_number_beside_a_metric_has_its_decimals_and_a_misspelt_metric_is_refused(tmp_path):
    beside = metric_class("gender_perplexity/l1_gap")
    assert (beside.name, beside.digits, beside.ideal) == ("gender_perplexity/l1_gap", 3, None)
    assert metric_class("gender_perplexity").ideal == 0.0
    path = tmp_path / "study.yaml"
    path.write_text("title: x\ncomparisons: [{id: a, vary: seed, from: 1, to: 2, metric: gender_perplexty/l1_gap}]\n")
    with pytest.raises(UserError, match=r"unknown 'gender_perplexty'. Did you mean 'gender_perplexity'"):
        load_study_file(path).check_names([], [])


def test_the_interval_of_a_share_ends_where_a_paired_t_test_of_above_minus_share_times_below_has_p_of_a_twentieth():
    from scipy.stats import ttest_1samp

    above, below = [2.1, 1.4, 2.9, 1.8, 2.2], [4.0, 4.6, 5.1, 3.7, 4.4]
    found = ratio(above, below)
    assert found.mean == pytest.approx(sum(above) / sum(below))
    for end in found.ci95:
        left = [one - end * other for one, other in zip(above, below, strict=True)]
        assert ttest_1samp(left, 0.0).pvalue == pytest.approx(0.05)
    assert ratio(above, [4.0, -4.6, 5.1, -3.7, 1.0]) is None
    assert ratio([1.0], [2.0]) is None


def test_copies_that_remove_two_fifths_of_what_privacy_adds_take_40_percent_back(tmp_path):
    tables = {one.id: one for one in share_tables(answer_all(write_study(tmp_path), STUDY)[0])}
    assert list(tables) == ["share_cda"]
    table = tables["share_cda"]
    assert [row.labels for row in table.rows] == [("epsilon 3.0",), ("epsilon 10.0",), ("epsilon 20.0",)]
    place = [column.title for column in table.columns].index(metric_class("toxicity").short)
    for row in table.rows:
        cell = row.cells[place]
        assert cell.value == pytest.approx(40, abs=2)
        assert cell.ci95[0] < 40 < cell.ci95[1] < 45
        assert cell.n == 3
    crows = [column.title for column in table.columns].index(metric_class("crows_pairs").short)
    assert {row.cells[crows].text for row in table.rows} == {"–"}


def test_a_study_that_takes_back_what_no_comparison_shows_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("title: x\ncomparisons: [{id: a, title: t, vary: seed, from: 1, to: 2, takes_back: b}]\n")
    with pytest.raises(UserError, match="a: takes_back names no comparison"):
        load_study_file(path)
