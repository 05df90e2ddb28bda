"""Real runs that say of themselves that they differ in the rule alone: where it is not so, both commands say it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.study.compare import compare
from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.study.study_file import find_study_file, load_study_file
from tests.study.made_up import edit_json


@pytest.fixture(scope="module")
def world(random_model, small_data, tmp_path_factory):
    """A model and data that are the same folders in every run, whatever is in them by then."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(random_model, folder / "model")
    shutil.copytree(small_data, folder / "data")
    return folder


@pytest.fixture(scope="module")
def run(world):
    def run(output, *flags):
        basis = f"--model_name_or_path {world}/model --data_dir {world}/data --output_dir {output} --num_rounds 1 "
        basis += "--client_samples 8 --heldout_samples 4 --max_steps 1 --batch_size 4 --seed 1 "
        basis += "--gradient_checkpointing false --bama_crows_fraction 0.5 --bama_stereoset_fraction 0.5"
        assert main(["run", *basis.split(), *flags]) == 0
        return output

    return run


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "plain")


def other_weights(folder):
    """Trained on in place, under the same name."""
    from safetensors.torch import load_file, save_file

    path = folder / "model/model.safetensors"
    weights = {name: value * 1.5 for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def other_answers(folder):
    path = folder / "data/alpaca/alpaca_gpt4_data.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([row | {"output": row["output"] + " Yes."} for row in rows]))


def other_preferences(folder):
    edit_json(folder / "data/biasdpo/BiasDPO.jsonl", lambda row: row.update(rejected=row["rejected"] + " Yes."))


def other_pairs(folder):
    path = folder / "data/crows_pairs/crows_pairs_anonymized.csv"
    path.write_text(path.read_text().replace(" is ", " was "))


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (other_weights, (), r"(base model|starting weights) \("),
        (other_answers, (), r"training data \(clean\) \("),
        (other_preferences, (), r"training data \(biased\) \("),
        (other_pairs, (), r"file of CrowS-Pairs score \("),
        (lambda folder: None, ("--crows_reduction", "mean"), r"(reduction of CrowS-Pairs score|crows_reduction) \("),
    ],
)
def test_what_differs_beside_the_rule_is_named_and_nothing_tested(plain, run, world, tmp_path, change, flags, said):
    before = shutil.copytree(world, tmp_path / "before")
    try:
        change(world)
        other = run(tmp_path / "runs/bama", "--aggregation", "bama", *flags)
    finally:
        for name in ("model", "data"):
            shutil.rmtree(world / name)
            shutil.copytree(before / name, world / name)
    text = compare([plain, other])
    assert re.search(said, text)
    assert "bama: CrowS-Pairs score" not in text
    answers, silent = answer_all(load_study([plain, other]), load_study_file(find_study_file([], None)))
    answers = [one for one in answers if one.comparison.id == "bama_normalized"]
    assert all(answer.pooled[0].tested is None for answer in answers)
    assert re.search(said, " ".join([*silent, *(note for answer in answers for note in answer.notes)]))


def test_runs_that_differ_in_the_rule_alone_are_tested_by_both(plain, run, tmp_path):
    other = run(tmp_path / "bama", "--aggregation", "bama")
    text = compare([plain, other])
    assert "not comparable" not in text
    assert "bama: CrowS-Pairs score" in text
    answers, _ = answer_all(load_study([plain, other]), load_study_file(find_study_file([], None)))
    (answer,) = [one for one in answers if one.comparison.id == "bama_normalized"]
    assert answer.pooled[0].tested.difference.n == 1
