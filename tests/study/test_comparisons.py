"""Declared comparisons: the right arms beside each other, tests by hand, and verdicts that do not turn on a coin."""

from __future__ import annotations

import math

import pytest
import yaml

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Metric
from fedbias_plugin.registry import EXTENSIONS
from fedbias_plugin.study.compare import compare
from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.figures import curves
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.study.report import write_report
from fedbias_plugin.study.study_file import find_study_file, load_study_file
from fedbias_plugin.study.tables import arm_tables
from tests.study.made_up import edit_json, make_arm, make_run


@pytest.fixture
def ask(tmp_path):
    """``ask(vary=..., from_=..., to=...)``: the answer to a comparison of the runs in ``tmp_path/runs``, and notes."""

    def ask(**declared):
        entry = {
            "id": "one",
            "within": ["training", "scenario"],
            "metric": "crows_pairs",
            "claim": "It is so",
        } | declared
        entry = {name.rstrip("_"): value for name, value in entry.items()}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({"title": "T", "comparisons": [entry]}))
        answers, notes = answer_all(load_study([tmp_path / "runs"]), load_study_file(path))
        return (answers[0] if answers else None), notes

    return ask


BAMA = {"vary": "aggregation", "from_": "plain", "to": "bama", "expect": "down"}


def word(answer):
    (verdict,) = answer.verdicts
    return verdict.word


def test_the_difference_is_paired_by_seed_and_tested_by_hand(tmp_path, ask):
    make_arm(tmp_path / "runs/plain", [60.0, 61.0, 63.0])
    make_arm(tmp_path / "runs/bama", [58.0, 58.5, 60.0], aggregation="bama")
    answer, _ = ask(**BAMA)
    (outcome,) = answer.pooled
    assert (outcome.before.mean, outcome.after.mean) == (pytest.approx(184 / 3), pytest.approx(176.5 / 3))
    assert outcome.tested.difference.mean == -2.5  # -2, -2.5, -3
    half = 4.302653 * 0.5 / math.sqrt(3)
    assert outcome.tested.difference.ci95 == pytest.approx((-2.5 - half, -2.5 + half))
    t = 2.5 / (0.5 / math.sqrt(3))
    assert outcome.tested.p_holm == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert word(answer) == "supported"


@pytest.mark.parametrize(
    ("plain", "bama", "expected"),
    [
        ([66.0, 67.0, 68.0], [51.0, 52.1, 53.0], "supported"),
        ([66.0, 67.0, 68.0], [48.8, 49.9, 50.8], "supported"),  # lands on both sides of 50, within the noise floor
        ([66.0, 67.0, 68.0], [48.0, 49.1, 48.0], "supported"),  # its mean is below 50, within the noise floor of 4.2
        ([66.0, 67.0, 68.0], [40.0, 41.1, 42.0], "over-corrected"),
        ([66.0, 67.0, 68.0], [72.0, 73.1, 74.0], "contradicted"),
        ([66.0, 67.0, 68.0], [60.0, 70.0, 64.0], "not significant"),
        ([51.0, 52.0, 53.0], [48.0, 49.1, 50.0], "not testable"),  # no bias to reduce: 52 is within the noise
        ([45.0, 46.0, 47.0], [42.0, 43.1, 44.0], "not testable"),  # below 50 already
        ([66.0, 67.0, 68.0], [56.0, 57.0, 58.0], "not testable"),  # the same in every seed
        ([66.0], [56.0], "not testable"),
    ],
)
def test_a_reduction_is_judged_on_the_signed_score_with_the_noise_floor(tmp_path, ask, plain, bama, expected):
    make_arm(tmp_path / "runs/plain", plain)
    make_arm(tmp_path / "runs/bama", bama, aggregation="bama")
    assert word(ask(**BAMA)[0]) == expected


@pytest.mark.parametrize(
    ("clean", "biased", "scale", "expected"),
    [
        ([51.0, 52.0, 53.0], [60.0, 61.1, 62.0], "bias", "supported"),
        ([42.0, 43.0, 44.0], [45.0, 46.1, 47.0], "bias", "not testable"),
        ([42.0, 43.0, 44.0], [45.0, 46.1, 47.0], "score", "supported"),
        ([60.0, 61.0, 62.0], [51.0, 52.1, 53.0], "bias", "contradicted"),
    ],
)
def test_a_rise_in_bias_must_end_above_50_and_one_in_the_score_need_not(tmp_path, ask, clean, biased, scale, expected):
    make_arm(tmp_path / "runs/clean", clean, scenario="3C")
    make_arm(tmp_path / "runs/biased", biased, scenario="1B2C")
    answer, _ = ask(vary="scenario", from_="3C", to="1B2C", within=["training"], expect="up", scale=scale)
    assert word(answer) == expected


def test_a_metric_whose_model_is_broken_decides_nothing(tmp_path, ask):
    make_arm(tmp_path / "runs/plain", [60.0, 61.0, 62.0], [66.0, 67.0, 68.0], lms=59.0)
    make_arm(tmp_path / "runs/bama", [55.0, 56.1, 57.0], [51.0, 52.1, 53.0], lms=59.0, aggregation="bama")
    answer, _ = ask(**BAMA, metric=["crows_pairs", "stereoset"])
    assert [verdict.word for verdict in answer.verdicts] == ["supported", "not testable"]
    assert "LMS below 60" in answer.verdicts[1].reason
    assert answer.word == "supported"


def test_metrics_that_contradict_each_other_are_said_to(tmp_path, ask):
    make_arm(tmp_path / "runs/plain", [70.0, 71.0, 72.0], [60.0, 61.0, 62.0])
    make_arm(tmp_path / "runs/bama", [60.0, 61.1, 62.0], [66.0, 67.1, 68.0], aggregation="bama")
    answer, _ = ask(**BAMA, metric=["crows_pairs", "stereoset"])
    assert answer.word == "metrics disagree"


def test_pairs_are_pooled_by_seed_and_one_that_opposes_is_named(tmp_path, ask):
    make_arm(tmp_path / "runs/a", [60.0, 61.0, 62.0])
    make_arm(tmp_path / "runs/b", [52.0, 53.1, 54.0], aggregation="bama")
    make_arm(tmp_path / "runs/c", [60.0, 61.0, 62.0], fed_alg="fedadam")
    make_arm(tmp_path / "runs/d", [61.0, 62.0, 63.0], fed_alg="fedadam", aggregation="bama")
    answer, _ = ask(**BAMA)
    assert [pair.name for pair in answer.pairs] == ["fedadam", "fedavg"]
    assert answer.pooled[0].tested.difference.mean == pytest.approx((-8 + 1 - 7.9 + 1 - 8 + 1) / 6)
    assert word(answer) == "partly supported"
    assert answer.verdicts[0].reason.endswith("not so for fedadam.")


def test_a_claim_across_models_needs_two_of_them(tmp_path, ask):
    for model in ("gemma", "phi"):
        make_arm(tmp_path / f"runs/{model}-plain", [60.0, 61.0, 62.0], model_name_or_path=model)
        make_arm(tmp_path / f"runs/{model}-bama", [52.0, 53.1, 54.0], model_name_or_path=model, aggregation="bama")
    across = {"within": ["model", "training"], "across": ["model", "training"]}
    assert ask(**BAMA, **across)[0].limits == "one algorithm (fedavg)"
    assert ask(**BAMA, **across, where={"model": "phi"})[0].limits == "one model (phi) and one algorithm (fedavg)"


def test_a_model_whose_runs_cannot_be_compared_is_none_that_a_claim_was_tested_in(tmp_path, ask):
    for model, data in (("gemma", "a"), ("phi", "b")):
        make_arm(tmp_path / f"runs/{model}-plain", [60.0, 61.0, 62.0], model_name_or_path=model)
        settings = {"model_name_or_path": model, "aggregation": "bama", "data": data}
        make_arm(tmp_path / f"runs/{model}-bama", [52.0, 53.1, 54.0], **settings)
    answer, _ = ask(**BAMA, within=["model", "training"], across=["model"])
    assert len(answer.pairs) == 2
    assert word(answer) == "supported"
    assert answer.limits == "one model (gemma)"


def test_holm_counts_all_comparisons_of_the_study(tmp_path):
    make_arm(tmp_path / "runs/plain", [60.0, 61.0, 63.0])
    make_arm(tmp_path / "runs/bama", [58.0, 58.5, 60.0], aggregation="bama")
    one = {"vary": "aggregation", "from": "plain", "to": "bama", "metric": "crows_pairs"}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"title": "T", "comparisons": [{"id": name, **one} for name in "ab"]}))
    answers, _ = answer_all(load_study([tmp_path / "runs"]), load_study_file(path))
    raw = answers[0].pooled[0].tested.p_value
    assert [answer.pooled[0].tested.p_holm for answer in answers] == [pytest.approx(2 * raw)] * 2
    assert answers[0].pairs[0].outcomes["crows_pairs"].tested.p_holm == pytest.approx(raw)


def test_arms_of_other_settings_are_not_compared_and_it_is_said_in_what_they_differ(tmp_path, ask):
    make_arm(tmp_path / "runs/plain", [60.0, 61.0, 63.0], learning_rate=1e-4)
    make_arm(tmp_path / "runs/bama", [52.0, 53.0, 54.5], aggregation="bama", learning_rate=1e-6)
    answer, notes = ask(**BAMA)
    assert answer is None
    assert notes == [
        "Not compared: fedavg 1B2C plain and fedavg 1B2C bama (normalized) differ in setting learning_rate (0.0001 and "
        "1e-06)."
    ]
    make_arm(tmp_path / "runs/slow", [55.0, 56.0, 57.0], learning_rate=1e-6)
    answer, _ = ask(**BAMA)
    assert answer.pairs[0].reference.facts["learning_rate"] == 1e-6
    assert "not taken: fedavg 1B2C plain learning_rate=0.0001." in answer.notes[0]


def test_of_several_strengths_the_default_one_is_taken(tmp_path, ask):
    make_arm(tmp_path / "runs/plain", [60.0, 61.0])
    make_arm(tmp_path / "runs/strong", [50.0, 51.0, 52.0], aggregation="bama", bama_lambda=2.0)
    make_arm(tmp_path / "runs/default", [58.0], aggregation="bama")
    answer, _ = ask(**BAMA)
    assert answer.pairs[0].arm.facts["bama_lambda"] == 0.2


def test_what_may_differ_is_declared(tmp_path, ask):
    one = {"num_clients": 1, "sample_clients": 1, "scenario": "custom", "biased_shares": "0.0", "client_samples": 90}
    make_arm(tmp_path / "runs/lora", [65.0, 66.0], use_peft=True, **one)
    make_arm(tmp_path / "runs/full", [70.0, 71.5], use_peft=False, learning_rate=1e-3, **one)
    declared = {"vary": "use_peft", "from_": {"training": "centralised LoRA"}, "to": {"training": "centralised full"}}
    declared |= {"expect": "up"}
    assert ask(**declared, within=["scenario"])[0] is None
    answer, _ = ask(**declared, within=["scenario"], may_differ=["learning_rate"])
    assert answer.pooled[0].tested.difference.mean == 5.25


def test_runs_without_a_seed_in_common_are_said_not_to_be_compared(tmp_path, ask):
    make_run(tmp_path / "runs/plain", seed=1)
    make_run(tmp_path / "runs/bama", seed=2, aggregation="bama")
    answer, _ = ask(**BAMA)
    assert answer.notes == ("Not compared, no seed in common: fedavg 1B2C bama (normalized) and fedavg 1B2C plain.",)
    assert word(answer) == "not testable"


def test_a_seed_on_other_items_is_left_out(tmp_path, ask):
    make_arm(tmp_path / "runs/plain", [60.0, 61.0, 62.0])
    bama = make_arm(tmp_path / "runs/bama", [50.0, 58.0, 59.5], aggregation="bama")
    edit_json(bama / "seed-1/metrics.jsonl", lambda line: line["global"]["crows_pairs"].update(ids_hash="other"))
    answer, _ = ask(**BAMA)
    assert (answer.pooled[0].tested.difference.mean, answer.pooled[0].tested.difference.n) == (-2.75, 2)
    assert "seed 1: they differ in chosen items of CrowS-Pairs score" in answer.notes[0]


class Gap(Metric):
    """A stranger's."""

    name, title, short, ideal = "gap", "occupation gap", "gap", 0.0


@pytest.fixture
def with_gap(tmp_path, monkeypatch):
    """Plain averaging and BAMA with a metric of a stranger's, whose ideal is 0."""
    monkeypatch.setitem(EXTENSIONS["metric"], "gap", f"{__name__}:Gap")
    for rule, value in (("plain", 0.4), ("bama", 0.1)):
        for seed in (1, 2, 3):
            run = make_run(tmp_path / f"runs/{rule}-{seed}", seed=seed, aggregation=rule)
            end = value + seed / 100 + (seed == 2) * 0.001 * (rule == "bama")

            def measured(line, end=end):
                value = end if line["round"] else 0.1
                line["global"]["gap"] = {"value": value, "ideal": 0.0, "n": 50, "noise_floor": 0.02}

            edit_json(run / "metrics.jsonl", measured)
    return tmp_path / "runs"


def test_a_stranger_s_metric_with_ideal_0_is_compared_without_being_named(with_gap, ask):
    answer, _ = ask(**BAMA, metric="gap")
    assert word(answer) == "supported"
    study = load_study([with_gap])
    assert study.spread(study.arms[0], "gap/delta").mean == pytest.approx(0.12, abs=0.002)
    (curve,) = curves(study.ordered({"aggregation": ["plain", "bama"]}), "gap")
    assert curve.title == "Occupation gap by round"
    assert "1B2C plain: 0.10 at round 0, 0.42 at round 2; 1B2C bama" in curve.panels[0].alt
    scores = next(table for table in arm_tables(study) if table.id == "scores")
    assert "gap" in [column.measure for column in scores.columns]
    text = compare([with_gap / "plain-1", with_gap / "bama-1"])
    assert "occupation gap (all items, ideal: 0)" in text
    assert "Final Delta = |value - ideal|, with 95% interval" in text
    assert "Delta gap" in text


def test_a_mistake_among_the_names_of_arms_is_named(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("title: T\narms: {slow: fedavg}\n")
    with pytest.raises(UserError, match="arms: 'slow' needs the facts of its arm"):
        load_study_file(path)
    path.write_text("title: T\narms: {slow: {learning_rat: 1.0}}\n")
    with pytest.raises(UserError, match="slow: unknown 'learning_rat'"):
        load_study_file(path).check_names((), ())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"vary": "aggregation", "from": "plain"}, "needs vary, from and to"),
        ({"vary": "a", "from": "b", "to": "c", "expct": "up"}, "unknown key 'expct'. Did you mean 'expect'"),
        ({"vary": "a", "from": "b", "to": "c", "expect": "sideways"}, "expect is one of up, down"),
        ({"vary": "a", "from": "b", "to": "c", "claim": "It is so"}, "a claim says what to expect: up or down"),
        ({"vary": "a", "from": "b", "to": "c", "where": 3}, "where: 3 is not what belongs here"),
    ],
)
def test_a_mistake_in_a_study_file_is_named(tmp_path, entry, message):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"title": "T", "comparisons": [{"id": "one", **entry}]}))
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_study_file(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"vary": "aggregatoin", "from": "plain"}, "unknown 'aggregatoin'. Did you mean 'aggregation'"),
        ({"vary": "aggregation", "from": "plain", "within": "trainig"}, "unknown 'trainig'. Did you mean 'training'"),
        ({"vary": "aggregation", "from": "plain", "metric": "crows"}, "unknown 'crows'. Did you mean 'crows_pairs'"),
    ],
)
def test_a_name_that_no_run_can_have_is_refused_before_anything_is_drawn(tmp_path, entry, message):
    make_run(tmp_path / "runs/plain")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"title": "T", "comparisons": [{"id": "one", "to": "bama", **entry}]}))
    with pytest.raises(UserError, match=f"one: {message}".replace("?", r"\?")):
        write_report([tmp_path / "runs"], tmp_path / "out", study_file=str(path))
    assert not (tmp_path / "out").exists()


def test_a_study_s_own_file_comes_before_the_paper_s_and_a_name_may_be_given(tmp_path):
    assert find_study_file([tmp_path], None).name == "paper.yaml"
    (tmp_path / "study.yaml").write_text("title: Mine")
    assert find_study_file([tmp_path], None) == tmp_path / "study.yaml"
    assert find_study_file([tmp_path], "paper").name == "paper.yaml"
    with pytest.raises(UserError, match=r"--study papr: .*Did you mean 'paper'"):
        find_study_file([tmp_path], "papr")
