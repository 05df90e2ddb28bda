"""Two runs are put together only where they are comparable: each of these pairs is caught by both commands."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedbias_plugin.study.comparable import conflicts, faults, named
from fedbias_plugin.study.compare import compare, load_runs
from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.study.runs import read_run
from fedbias_plugin.study.study_file import find_study_file, load_study_file
from tests.study.made_up import edit_json, make_run

SEEDS = (1, 2)
METRICS, RUN, MANIFEST = "metrics.jsonl", "run.json", "manifest.json"


def write_scores(folder, wins):
    """Item scores of the last round, so that ``compare`` has something to test."""
    (folder / "scores").mkdir()
    ids = np.asarray([str(number) for number in range(20)])
    more = np.where(np.arange(20) < wins, 1.0, -1.0)
    np.savez(folder / "scores/round_002_crows_pairs.npz", ids=ids, more=more, less=np.zeros(20))


@pytest.fixture
def study(tmp_path):
    """Plain averaging and BAMA, two seeds each."""
    for seed in SEEDS:
        plain = make_run(tmp_path / f"plain-{seed}", 62.0 + seed, 58.0 + seed, seed=seed)
        bama = make_run(tmp_path / f"bama-{seed}", 51.0 + seed / 2, 52.0 + seed / 2, seed=seed, aggregation="bama")
        for run in (plain, bama):
            edit_json(run / RUN, lambda run: run["model"].update(fingerprint="e" * 64, dtype="float32"))
            edit_json(run / RUN, lambda run: run.update(tokenizer={"fingerprint": "e" * 64, "chat_template": "e" * 64}))
        write_scores(plain, 18)
        write_scores(bama, 6)
    return tmp_path


def edit(study, file, change):
    """``change`` a file of both runs with BAMA."""
    for seed in SEEDS:
        edit_json(study / f"bama-{seed}" / file, change)


def outcome_of(study):
    """Whether the report tests BAMA against plain averaging, and all it says."""
    loaded = load_study([study])
    answers, silent = answer_all(loaded, load_study_file(find_study_file([], None)))
    own = [answer for answer in answers if answer.comparison.vary == ("aggregation",)]
    p_values = [
        one.tested and one.tested.p_holm for answer in own for one in answer.pooled if one.metric == "crows_pairs"
    ]
    said = [*loaded.warnings, *silent, *(note for answer in own for note in answer.notes)]
    return any(p is not None for p in p_values), " ".join(said)


def test_runs_that_differ_in_the_rule_alone_are_tested(study):
    assert outcome_of(study) == (True, "")
    text = compare([study / "plain-1", study / "bama-1"])
    assert "bama-1: CrowS-Pairs score -60.0" in text
    assert "not comparable" not in text


def first_score(key, points):
    """Move round 0 by some points."""

    def change(line):
        if line["round"] == 0:
            for view in (line["global"][key], line["global"][key]["full"], line["global"][key]["report"]):
                view["score" if key == "crows_pairs" else "ss"] += points

    return change


def of_clients(**changes):
    def change(line):
        for row in line["clients"].values():
            row.update(changes)

    return change


def of_block(metric="crows_pairs", **changes):
    return lambda line: line["global"][metric].update(changes)


def of_full(**changes):
    return lambda line: line["global"]["crows_pairs"]["full"].update(changes)


def equal_weights(line):
    for row in line["clients"].values():
        row["weight"] = 1 / 3


def source(name, sha):
    return lambda run: run["data"][name].update(sha256=sha * 64)


PAIRS = {
    "other training data": (RUN, source("clean", "c"), "training data (clean)"),
    "other biased data": (RUN, source("biased", "c"), "training data (biased)"),
    "another file of the benchmark": (RUN, source("crows_pairs", "c"), "file of CrowS-Pairs score"),
    "another version of torch": (RUN, lambda run: run.update(versions={"torch": "2.9"}), "version of torch"),
    "scores in bfloat16": (RUN, lambda run: run.update(scoring={"dtype": "bfloat16"}), "scoring dtype (float32 and bf"),
    "another prefix token": (RUN, lambda run: run.update(prefix_token="<bos>"), "prefix token"),
    "another base model": (RUN, lambda run: run["model"].update(fingerprint="f" * 64), "base model (eee"),
    "another tokenizer": (RUN, lambda run: run["tokenizer"].update(fingerprint="f" * 64), "tokenizer (eeeeeeee and ff"),
    "another chat template": (RUN, lambda run: run["tokenizer"].update(chat_template="f" * 64), "chat template (eeeee"),
    "other rows of a client": (MANIFEST, lambda one: one["clients"][1].update(row_ids_sha256="x"), "rows of client 1"),
    "other held-out rows": (MANIFEST, lambda one: one["heldout"].update(row_ids_sha256="x"), None),
    "a round 0 that is 12 points away": (METRICS, first_score("crows_pairs", 12.0), "starting weights"),
    "a round 0 that is a point away": (METRICS, first_score("crows_pairs", 1.0), "starting weights"),
    "fewer items": (METRICS, of_block(n=80), "items of CrowS-Pairs score"),
    "another choice of items": (METRICS, of_block(ids_hash="other"), "chosen items of CrowS-Pairs score"),
    "another reduction": (METRICS, of_block(reduction="mean"), "reduction of CrowS-Pairs score"),
    "scores of all items": (METRICS, of_block(items="full"), "items of CrowS-Pairs score"),
    "items of another whole": (METRICS, of_full(n=99), "items of CrowS-Pairs score (90 report items of 120 and 90"),
    "a client with a row less": (METRICS, of_clients(rows=29), "29 rows, not the 30"),
    "fewer rows than asked for": (METRICS, of_clients(rows=20), "20 rows, not the 30"),
    "no poisoned client": (METRICS, of_clients(poisoned_share=0.0), "disagree on the biased rows of client 0"),
    "weights of plain averaging": (
        METRICS,
        equal_weights,
        "the weights of round 1 are not those of --aggregation bama",
    ),
    "another rule in the records": (METRICS, lambda line: line.update(aggregation="median"), "its records median"),
    "clients in round 0": (METRICS, lambda line: line["clients"].update({"0": {"rows": 30}}), "round 0 has clients"),
}


@pytest.mark.parametrize("name", [name for name, (*_, text) in PAIRS.items() if text])
def test_a_pair_that_is_none_is_named_and_not_tested(study, name):
    file, change, text = PAIRS[name]
    edit(study, file, change)
    was_tested, said = outcome_of(study)
    assert not was_tested
    assert text in said
    compared = compare([study / "plain-1", study / "bama-1"])
    assert text in compared
    assert "CrowS-Pairs score -60.0" not in compared


def test_auto_that_chose_float32_is_no_difference_nor_is_a_dtype_that_the_study_varies(study):
    edit(study, RUN, lambda run: run.update(scoring={"asked": "auto", "dtype": "float32"}))
    edit(study, RUN, lambda run: run["config"].update(scoring_dtype="auto"))
    assert outcome_of(study) == (True, "")
    edit(study, RUN, lambda run: run.update(scoring={"dtype": "bfloat16"}))
    plain, bama = load_runs([study / "plain-1", study / "bama-1"])
    assert [str(one) for one in conflicts(plain, bama, ["aggregation", "scoring_dtype"])] == []
    assert ["scoring dtype" in str(one) for one in conflicts(plain, bama, ["aggregation"])] == [True]


def test_a_chat_template_that_no_run_reads_is_no_difference_nor_is_a_tokenizer_that_is_not_known(study):
    edit(study, RUN, lambda run: run["tokenizer"].update(chat_template="f" * 64))
    for rule in ("plain", "bama"):
        for seed in SEEDS:
            edit_json(study / f"{rule}-{seed}" / RUN, lambda run: run["config"].update(template="alpaca"))
    assert outcome_of(study) == (True, "")
    edit(study, RUN, lambda run: run.pop("tokenizer"))
    assert outcome_of(study) == (True, "")
    assert "bama-1: CrowS-Pairs score -60.0" in compare([study / "plain-1", study / "bama-1"])


def test_no_poisoned_client_is_caught_without_run_json_too(study):
    edit(study, METRICS, of_clients(poisoned_share=0.0))
    run = load_runs([study / "bama-1"])[0]
    object.__setattr__(run, "details", {})
    assert faults(run) == ["its clients hold biased shares of 0, 0, 0, not the 0, 0, 1 of its scenario"]


def test_other_held_out_rows_keep_the_loss_alone_from_being_compared(study):
    for change in (
        PAIRS["other held-out rows"][:2],
        (METRICS, lambda line: line["global"]["heldout_loss"].update(n=7)),
    ):
        edit(study, *change)
    one, other = load_runs([study / "plain-1", study / "bama-1"])
    found = conflicts(one, other, None)
    assert [(clash.metric, clash.text.split(" (")[0]) for clash in found] == [
        ("heldout_loss", "items of held-out loss"),
        ("heldout_loss", "held-out rows"),
    ]
    assert "bama-1: CrowS-Pairs score -60.0" in compare([study / "plain-1", study / "bama-1"])


def test_a_rule_that_was_off_and_trained_on_other_data_is_not_reported_as_bama(study):
    edit(study, METRICS, equal_weights)
    edit(study, RUN, source("clean", "c"))
    loaded = load_study([study])
    assert [arm.label for arm in loaded.arms] == ["fedavg 1B2C plain"]
    assert sum("not those of its settings" in warning for warning in loaded.warnings) == 2


def test_another_setting_is_a_difference_of_the_report_and_a_row_of_compare(study, tmp_path):
    for seed in SEEDS:
        make_run(tmp_path / f"fast-{seed}", 52.0 + seed, seed=seed, aggregation="krum", learning_rate=1.0)
    one, other = load_runs([study / "plain-1", study / "fast-1"])
    assert [clash.text for clash in conflicts(one, other, ("aggregation",))] == [
        "setting learning_rate (2e-05 and 1.0)"
    ]
    assert conflicts(one, other, None) == []
    assert "learning_rate" in compare([study / "plain-1", study / "fast-1"])


def test_what_follows_from_the_setting_that_is_looked_at_is_no_conflict(tmp_path):
    first = make_run(tmp_path / "a", scenario="1B2C")
    second = make_run(tmp_path / "b", scenario="3B")
    edit_json(second / MANIFEST, lambda one: one["clients"][1].update(row_ids_sha256="x"))
    one, other = load_runs([first, second])
    assert conflicts(one, other, ("scenario",)) == []
    assert [clash.text.split(" (")[0] for clash in conflicts(one, other, ())] == [
        "setting scenario", "rows of client 1", "biased share of client 1", "biased share of client 2",
    ]  # fmt: skip


def test_what_a_run_does_not_say_is_no_conflict(tmp_path):
    silent = make_run(tmp_path / "silent", recorded=True)
    loud = make_run(tmp_path / "loud", aggregation="bama")
    (loud / "manifest.json").write_text("no json")
    one, other = load_runs([silent, loud])
    assert conflicts(one, other, ("aggregation",)) == []
    assert json.loads((loud / "run.json").read_text())["versions"]


def test_as_many_held_out_rows_as_fit_may_differ_between_seeds_and_not_within_one(tmp_path):
    runs = [make_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2), ("c", 1))]
    for run in runs[1:]:
        edit_json(run / METRICS, lambda line: line["global"]["heldout_loss"].update(n=7))
    first, other_seed, same_seed = load_runs(runs)
    assert conflicts(first, other_seed) == []
    assert "items of held-out loss" in named(conflicts(first, same_seed))


def test_a_held_out_loss_on_other_rows_does_not_tell_of_other_weights(tmp_path):
    first, second = make_run(tmp_path / "a", scenario="1B2C"), make_run(tmp_path / "b", scenario="3C")
    edit_json(second / MANIFEST, lambda one: one["heldout"].update(row_ids_sha256="x"))
    edit_json(second / METRICS, lambda line: line["global"]["heldout_loss"].update(loss=1.1))
    one, other = load_runs([first, second])
    assert conflicts(one, other, ("scenario",)) == []
    (second / MANIFEST).unlink()
    one, other = load_runs([first, second])
    assert conflicts(one, other, ("scenario",)) == []
    assert [clash.text for clash in conflicts(one, other, ("learning_rate",))][-1] == (
        "starting weights (round 0, held-out loss: 2.0000 and 1.1000)"
    )


@pytest.mark.parametrize(
    ("says", "task", "agree"),
    [(True, "mine", True), (False, "mine", False), (None, "mine", True), (None, "sft", False), (True, "sft", True)],
)
def test_seeds_start_from_other_weights_where_the_run_says_that_they_are_drawn(tmp_path, says, task, agree):
    runs = [make_run(tmp_path / f"run-{seed}", 60.0, 60.0, seed=seed, task=task) for seed in (1, 2)]
    for digit, run in zip("ab", runs, strict=True):
        more = {"fingerprint": digit * 64} | ({} if says is None else {"drawn_by_seed": says})
        edit_json(run / RUN, lambda content, more=more: content["model"].update(more))
    one, other = (read_run(run.name, run, []) for run in runs)
    assert any("base model" in str(found) for found in conflicts(one, other)) is not agree


def test_plain_weights_may_be_those_of_the_rows_or_equal_and_nothing_else(tmp_path):
    def weigh(*weights):
        def change(line):
            for row, rows, weight in zip(line["clients"].values(), (10, 20, 30), weights, strict=False):
                row.update(rows=rows, weight=weight)

        return change

    settings = {"scenario": "none", "client_samples": None}
    for name, weights in (
        ("rows", (1 / 6, 1 / 3, 1 / 2)),
        ("equal", (1 / 3, 1 / 3, 1 / 3)),
        ("other", (0.5, 0.3, 0.2)),
    ):
        run = make_run(tmp_path / name)
        edit_json(run / METRICS, weigh(*weights))
        edit_json(run / RUN, lambda run: run["config"].update(settings))
    found = {run.name: faults(run) for run in load_runs([tmp_path / name for name in ("rows", "equal", "other")])}
    assert found == {"rows": [], "equal": [], "other": ["the weights of round 1 are not those of --aggregation plain"]}


def test_rows_that_an_attack_adds_are_no_fault_and_no_conflict(study):
    attacked = make_run(study / "attacked", 55.0, 52.0, seed=1, attack="probe_gaming")
    write_scores(attacked, 12)
    edit_json(attacked / METRICS, lambda line: line["clients"].get("0", {}).update(rows=60, attack="probe_gaming"))
    for row in ("0", "1", "2"):  # plain averaging weighs by rows
        edit_json(attacked / METRICS, lambda line, row=row: line["clients"].get(row, {}).update(weight=0.25))
    edit_json(attacked / METRICS, lambda line: line["clients"].get("0", {}).update(weight=0.5))
    edit_json(attacked / MANIFEST, lambda one: one["clients"][0].update(row_ids_sha256="more"))
    one, other = load_runs([study / "plain-1", attacked])
    assert faults(other) == []
    assert conflicts(one, other, None) == conflicts(one, other, ("attack",)) == []
    assert "rows of client 0" in " ".join(map(str, conflicts(one, other, ("learning_rate",))))
    assert "attacked: CrowS-Pairs score -30.0" in compare([study / "plain-1", attacked])


@pytest.mark.parametrize("setting", [{"template": "vicuna"}, {"seq_length": 64}])
def test_a_held_out_loss_of_other_texts_does_not_tell_of_other_weights(tmp_path, setting):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", **setting)
    edit_json(second / METRICS, lambda line: line["global"]["heldout_loss"].update(loss=4.1))
    one, other = load_runs([first, second])
    assert conflicts(one, other, None) == []
    assert [str(clash).split(" (")[0] for clash in conflicts(one, other, ())] == [f"setting {next(iter(setting))}"]


@pytest.mark.parametrize(("ratio", "mode"), [(0.5, "append"), (0.0, "append"), (0.0, "substitute")])
def test_rows_that_a_transform_adds_are_no_fault_and_without_one_they_are(tmp_path, ratio, mode):
    run = make_run(tmp_path / "run", cda_ratio=ratio, cda_mode=mode, cda_words="auto")
    edit_json(run / METRICS, lambda line: [row.update(rows=45) for row in line["clients"].values()])
    is_off = ["its clients hold 45 rows, not the 30 of --client_samples"]
    assert faults(load_runs([run])[0]) == ([] if ratio else is_off)


def test_halves_that_each_seed_draws_may_differ_in_size_and_the_whole_may_not(tmp_path):
    """Target terms stay whole, and so halves are of other sizes; a count of what was written counts no items."""
    one, other = make_run(tmp_path / "1", seed=1), make_run(tmp_path / "2", seed=2)
    edit_json(other / METRICS, of_block(n=84))
    assert not conflicts(read_run("r", one, []), read_run("r", other, []))
    twin, third = make_run(tmp_path / "twin", seed=1), make_run(tmp_path / "3", seed=3)
    edit_json(twin / METRICS, of_block(n=84))
    edit_json(third / METRICS, of_full(n=119))
    apart = conflicts(read_run("r", one, []), read_run("r", third, []))
    assert [found.text for found in apart] == ["items of CrowS-Pairs score in all (120 and 119)"]
    found = " ".join(map(str, conflicts(read_run("r", one, []), read_run("r", twin, []))))
    assert "items of CrowS-Pairs score (90 report items of 120 and 84 report items of 120)" in found
    for run, written in ((one, 14), (other, 11)):
        edit_json(run / METRICS, lambda line, n=written: line["global"].update(gender_count={"value": 0.4, "n": n}))
    assert not conflicts(read_run("r", one, []), read_run("r", other, []))


def test_emulators_of_two_sizes_are_no_sign_of_other_weights(tmp_path):
    one, other = (make_run(tmp_path / name, seed=1) for name in ("a", "b"))
    for run, value in ((one, 2.9), (other, 3.1)):
        emulator = {"value": value, "ideal": None, "n": 100, "ci95": None}
        edit_json(run / "metrics.jsonl", lambda line, block=emulator: line["global"].update(emulator=block))
    assert [*conflicts(read_run("r", one, []), read_run("r", other, []))] == []
    edit_json(other / "metrics.jsonl", lambda line: line["global"]["crows_pairs"].update(value=40.0, score=40.0))
    assert "starting weights" in next(iter(conflicts(read_run("r", one, []), read_run("r", other, [])))).text
