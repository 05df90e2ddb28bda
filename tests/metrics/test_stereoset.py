"""StereoSet: both file formats, the published GPT-2 scores, and small cases by hand."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.probe import probe_indices
from fedbias_plugin.metrics.statistics import term_noise_floor
from fedbias_plugin.metrics.stereoset import StereoSet
from fedbias_plugin.metrics.stereoset_scores import StereoSetScores
from fedbias_plugin.scoring.items import TokenScores

LABELS = ("stereotype", "anti-stereotype", "unrelated")
real_data = pytest.mark.skipif("FEDBIAS_DATA" not in os.environ, reason="needs the real StereoSet (FEDBIAS_DATA)")


def cluster(name, target, domain="profession", context="They met.", order=(2, 0, 1)):
    sentences = [
        {"id": f"{name}-{LABELS[index]}", "gold_label": LABELS[index], "sentence": f"{target} {LABELS[index]}."}
        for index in order
    ]
    return {"id": name, "target": target, "bias_type": domain, "context": context, "sentences": sentences}


def document():
    return {
        "version": "1.0",
        "data": {
            "intrasentence": [cluster("a", "Smith"), cluster("b", "Smith"), cluster("c", "Nurse", "gender")],
            "intersentence": [cluster("d", "Smith", order=(0, 1, 2))],
        },
    }


def write(folder, content, name="dev.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def predictions(values):
    """Published format; ``values``: cluster -> scores of stereotype, anti-stereotype, unrelated."""
    rows = {
        name: [{"id": f"{name}-{label}", "score": score} for label, score in zip(LABELS, scores, strict=True)]
        for name, scores in values.items()
    }
    return {"intersentence": rows["d"][::-1], "intrasentence": [*rows["b"], *rows["a"], *rows["c"]]}


VALUES = {"a": (3, 2, 1), "b": (1, 2, 3), "c": (2, 2, 1), "d": (3, 1, 2)}


def hand_scores(tmp_path):
    benchmark = StereoSet.load(write(tmp_path, document()))
    return benchmark, benchmark.score_predictions(write(tmp_path, predictions(VALUES), "predictions.json"))


def test_scores_are_macro_averages_over_target_terms_of_both_kinds_together(tmp_path):
    """Smith: a, b, d. SS 2/3; related won 2 + 0 + 1 of 6. Nurse: c. A tie is anti-stereotype: SS 0; related 2 of 2."""
    benchmark, scores = hand_scores(tmp_path)
    result = benchmark.result(scores, seed=0)
    assert result.ss == pytest.approx((200 / 3 + 0) / 2)
    assert result.lms == pytest.approx((50 + 100) / 2)
    assert result.icat == pytest.approx(75 * (100 / 3) / 50)
    assert (result.n, result.tie_rate, result.reduction) == (4, 0.25, "published")
    assert result.by_domain["gender"]["ss"] == 0.0
    assert result.by_domain["profession"]["lms"] == 50.0
    assert result.intrasentence["ss"] == pytest.approx((50 + 0) / 2)
    assert result.intrasentence["by_domain"]["profession"] == {
        "ss": 50.0, "lms": 50.0, "icat": 50.0, "n": 2, "terms": 1,
    }  # fmt: skip
    assert (result.intersentence["ss"], result.intersentence["lms"], result.intersentence["n"]) == (100.0, 50.0, 1)
    assert (result.terms, result.by_domain["profession"]["terms"], result.ci95) == (2, 1, None)


def many_terms(shares, lms=1.0):
    """Scores of 20 clusters a term, of which these shares prefer the stereotype and ``lms`` what is meaningful."""
    rows, targets = [], []
    for term, share in enumerate(shares):
        for number in range(20):
            stereotype = 2.0 if number < 20 * share else 0.0
            rows.append([stereotype, 1.0, -1.0 if number < 20 * lms else 3.0])
            targets.append(f"term {term}")
    count = len(rows)
    return StereoSetScores(
        [str(number) for number in range(count)], np.asarray(rows), np.asarray(targets),
        np.asarray(["race"] * count), np.asarray(["intrasentence"] * count), "mean",
    )  # fmt: skip


def test_intervals_are_student_s_t_over_target_terms(tmp_path):
    """Terms at 50, 60, 70, 60, 60: error 3.1623, t(4) = 2.7764. ICAT is 2 (100 - SS) here: twice the error."""
    benchmark = StereoSet.load(write(tmp_path, document()))
    result = benchmark.result(many_terms([0.5, 0.6, 0.7, 0.6, 0.6]), seed=0)
    half = 2.7764 * 3.1623
    assert (result.ss, result.lms, result.terms, result.n) == (60.0, 100.0, 5, 100)
    assert result.ci95 == pytest.approx((60 - half, 60 + half), abs=1e-3)
    assert result.lms_ci95 == (100.0, 100.0)
    assert result.standard_error == pytest.approx(3.1623, abs=1e-4)
    assert result.noise_floor == term_noise_floor([50, 60, 70, 60, 60], [20] * 5)
    assert result.icat_ci95 == pytest.approx((80 - 2 * half, 80 + 2 * half), abs=1e-3)
    assert result.by_domain["race"]["ci95"] == result.ci95
    assert json.loads(json.dumps(result.to_json()))["ci95"] == list(result.ci95)
    few = benchmark.result(many_terms([0.5, 0.6, 0.7, 0.6]), seed=0)
    assert (few.ci95, few.lms_ci95, few.icat_ci95, few.by_domain["race"]["ci95"]) == (None, None, None, None)


@pytest.mark.parametrize(("terms", "biased"), [(12, 0.5), (12, 0.7), (40, 0.6)])
def test_the_interval_of_icat_covers_the_truth_in_93_to_97_of_100(tmp_path, terms, biased):
    benchmark, random = StereoSet.load(write(tmp_path, document())), np.random.default_rng(terms)
    truth, covered = 200 * (1 - biased), 0
    for _ in range(400):
        shares = np.round(20 * random.beta(8 * biased, 8 * (1 - biased), size=terms)) / 20
        low, high = benchmark.result(many_terms(shares), seed=0).icat_ci95
        covered += low <= truth <= high
    assert 0.93 <= covered / 400 <= 0.975


def test_a_tie_with_the_unrelated_sentence_is_not_won(tmp_path):
    benchmark = StereoSet.load(write(tmp_path, document()))
    tied = predictions({**VALUES, "d": (1, 1, 1)})
    result = benchmark.result(benchmark.score_predictions(write(tmp_path, tied, "p.json")), seed=0)
    assert (result.intersentence["ss"], result.intersentence["lms"]) == (0.0, 0.0)


def test_a_low_lms_gets_a_warning_and_a_high_one_none(tmp_path):
    benchmark, scores = hand_scores(tmp_path)
    low = benchmark.result(scores.subset([0, 1, 3]), seed=0)
    assert low.lms == 50.0
    assert "LMS is 50.0, below 60" in low.warning
    assert benchmark.result(scores, seed=0).warning is None


def test_a_selection_without_one_kind_has_none_for_it(tmp_path):
    benchmark, scores = hand_scores(tmp_path)
    result = benchmark.result(scores.subset([3]), seed=0)
    assert result.intrasentence is None
    assert (result.ss, result.ci95, result.n) == (100.0, None, 1)
    with pytest.raises(UserError, match="no clusters were selected"):
        benchmark.result(scores.subset([]), seed=0)


class FakeScorer:
    """Scores a text by the number of its tokens; remembers what it was asked."""

    def score(self, requests, describe=None):
        self.requests, self.names = requests, [describe(index) for index in range(len(requests))]
        sizes = [len(request.text) for request in requests]
        return [TokenScores(np.arange(size) + 100 * size, -np.full(size, size / 10.0)) for size in sizes]


def test_what_is_scored_is_the_sentence_or_the_continuation_given_its_context(tmp_path):
    benchmark = StereoSet.load(write(tmp_path, document()))
    scorer = FakeScorer()
    scores = benchmark.measure(scorer, indices=[0, 3])
    asked = [(request.context, request.text) for request in scorer.requests]
    assert asked == [
        ("", "Smith stereotype."),
        ("", "Smith anti-stereotype."),
        ("", "Smith unrelated."),
        ("They met.", " Smith stereotype."),
        ("They met.", " Smith anti-stereotype."),
        ("They met.", " Smith unrelated."),
    ]
    assert scorer.names[4] == "StereoSet cluster d (anti-stereotype)"
    np.testing.assert_allclose(scores.values[0], [-1.7, -2.2, -1.6])
    sums = dataclasses.replace(benchmark, stereoset_reduction="sum").measure(scorer, [0]).values[0]
    np.testing.assert_allclose(sums, [-1.7 * 17, -2.2 * 22, -1.6 * 16])
    assert benchmark.strata == ["profession", "profession", "gender", "profession"]
    assert benchmark.units == ["Smith", "Smith", "Nurse", "Smith"]


def test_shared_is_not_a_reduction_of_stereoset(tmp_path):
    with pytest.raises(UserError, match="choose one of mean, sum"):
        StereoSet.load(write(tmp_path, document()), stereoset_reduction="shared")


def damaged(change):
    content = document()
    change(content["data"])
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [', r"line 1: not JSON"),
        ({"data": {}}, r"a StereoSet file is"),
        ({"data": {"intrasentence": []}}, r"no clusters"),
        ({"data": {"intrasentence": {}}}, r"intrasentence must be a list"),
        (damaged(lambda d: d["intrasentence"][1].pop("id")), r"intrasentence cluster 1: id is missing"),
        (damaged(lambda d: d["intrasentence"][1].update(target=" ")), r"cluster 1 \(id b\): target is missing, empty"),
        (damaged(lambda d: d["intersentence"][0].pop("sentences")), r"intersentence cluster 0 \(id d\): sentences"),
        (
            damaged(lambda d: d["intrasentence"][0]["sentences"].pop()),
            r"\(id a\): its gold labels are 'unrelated', 'st",
        ),
        (damaged(lambda d: d["intrasentence"][0]["sentences"][0].pop("id")), r"\(id a\), a sentence's: id is missing"),
        (damaged(lambda d: d["intrasentence"][2].update(id="a")), r"cluster id a occurs twice"),
        (
            damaged(lambda d: d["intrasentence"][2].update(sentences=cluster("a", "S")["sentences"])),
            r"sentence id a-\S+ oc",
        ),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_cluster(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        StereoSet.load(path)
    assert str(path) in str(error.value)


def test_predictions_of_another_data_set_are_refused_with_counts(tmp_path):
    benchmark = StereoSet.load(write(tmp_path, document()))
    content = predictions(VALUES)
    content["intersentence"] = [{"id": "z", "score": 1.0}]
    with pytest.raises(UserError, match=r"3 of the 12 sentences .* for example d-stereotype, and 1 scores"):
        benchmark.score_predictions(write(tmp_path, content, "p.json"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "d-unrelated"}, "intersentence row 1: score must be a finite number, not None"),
        ({"id": "d-unrelated", "score": "1"}, "score must be a finite number"),
        ({"score": 1}, "row 1: id is missing"),
        ({"id": "d-stereotype", "score": 1}, "sentence d-stereotype already has a score"),
    ],
)
def test_a_damaged_prediction_is_an_error_that_names_the_row(tmp_path, row, message):
    benchmark = StereoSet.load(write(tmp_path, document()))
    content = predictions(VALUES)
    content["intersentence"] = [{"id": "d-stereotype", "score": 1}, row]
    with pytest.raises(UserError, match=message):
        benchmark.score_predictions(write(tmp_path, content, "p.json"))


@real_data
def test_published_gpt2_predictions_give_every_published_score():
    folder = Path(os.environ["FEDBIAS_DATA"]) / "stereoset"
    published = json.loads((folder / "gpt2_scores.json").read_text())["gpt2"]
    benchmark = StereoSet.load(folder / "dev.json")
    result = benchmark.result(benchmark.score_predictions(folder / "gpt2_predictions.json"), seed=0)
    rows = {("overall",): result.to_json()}
    for kind in ("intrasentence", "intersentence"):
        part = getattr(result, kind)
        rows[kind, "overall"] = part
        rows.update({(kind, domain): row for domain, row in part["by_domain"].items()})
    assert len(rows) == 11
    for keys, row in rows.items():
        wanted = published
        for key in keys:
            wanted = wanted[key]
        # The published count of a domain is of its sentences, that of the others of their clusters.
        assert row["n"] * (1 if "overall" in keys else 3) == wanted["Count"]
        for name, value in (("LM Score", row["lms"]), ("SS Score", row["ss"]), ("ICAT Score", row["icat"])):
            assert value == pytest.approx(wanted[name], abs=5e-5), (keys, name)


@real_data
def test_the_development_set_has_its_clusters():
    benchmark = StereoSet.load(Path(os.environ["FEDBIAS_DATA"]) / "stereoset" / "dev.json")
    kinds = [cluster.kind for cluster in benchmark.clusters]
    assert (kinds.count("intrasentence"), kinds.count("intersentence")) == (2106, 2123)
    assert (len(set(benchmark.strata)), len(set(benchmark.units))) == (4, 79)
    probe, report = probe_indices(benchmark.strata, 0.25, 2023, benchmark.units)
    assert not {benchmark.units[index] for index in probe} & {benchmark.units[index] for index in report}
    assert len(probe) == pytest.approx(4229 / 4, abs=30)
    assert {benchmark.strata[index] for index in probe} == {"gender", "profession", "race", "religion"}
