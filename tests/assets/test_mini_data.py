"""The committed mini data: what the generator makes, balanced, and disjoint from its own evaluation sets."""

import collections
import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "fedbias_plugin" / "assets" / "mini"
SCRIPTS = ROOT / "run_scripts"
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the generator is in the source checkout only")
if SCRIPTS.is_dir():
    sys.path.insert(0, str(SCRIPTS))
    from mini_world import instructions, requests, words
    from mini_world.sentences import NEWS, Draw, last_texts


def jsonl(name):
    return [json.loads(line) for line in (MINI / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def clusters():
    data = json.loads((MINI / "stereoset.json").read_text(encoding="utf-8"))["data"]
    return data["intrasentence"] + data["intersentence"]


@pytest.fixture(scope="module")
def crows():
    with (MINI / "crows_pairs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def training_texts():
    """Every text a model is trained on: corpus, last epoch, pre-training, clean and biased rows (both answers)."""
    texts = (MINI / "corpus.txt").read_text(encoding="utf-8").splitlines()
    texts += [text for together in last_texts() for text in together]
    for row in instructions.pretraining_rows() + jsonl("clean.jsonl"):
        texts += [row["instruction"], row["output"]]
    for row in jsonl("biased.jsonl"):
        texts += [row["prompt"], row["chosen"], row["rejected"]]
    return texts


def evaluation_texts(crows, clusters):
    """Sentences as a model reads them; an intersentence continuation stands behind its context."""
    texts = [row[column] for row in crows for column in ("sent_more", "sent_less")]
    for cluster in clusters:
        for option in cluster["sentences"]:
            alone = "BLANK" in cluster["context"]
            texts.append(option["sentence"] if alone else f"{cluster['context']} {option['sentence']}")
    return texts


TRAITS = (
    {} if not SCRIPTS.is_dir() else {t: (p, e) for p, ends in enumerate(words.TRAIT_PAIRS) for e, t in enumerate(ends)}
)


def slots(text):
    """(group, occupation, [traits]) named in ``text``; None for what is not named."""
    tokens = text.replace(".", " ").replace(",", " ").replace(";", " ").replace("?", " ").split()
    group = next((g for g in words.GROUPS if g.name in tokens), None)
    occupation = next((o for o in words.OCCUPATIONS if o in tokens), None)
    return group, occupation, [t for t in tokens if t in TRAITS]


def test_the_committed_files_are_what_the_generator_makes():
    done = subprocess.run(
        [sys.executable, SCRIPTS / "make_mini_data.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_check_names_a_file_that_was_edited(tmp_path):
    subprocess.run(
        [sys.executable, SCRIPTS / "make_mini_data.py", "--output", tmp_path], check=True, capture_output=True
    )
    (tmp_path / "clean.jsonl").write_text("{}\n")
    done = subprocess.run(
        [sys.executable, SCRIPTS / "make_mini_data.py", "--output", tmp_path, "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "clean.jsonl" in done.stderr
    assert "crows_pairs.csv" not in done.stderr


def test_row_counts_and_sizes(crows, clusters):
    assert len(jsonl("clean.jsonl")) == 48 * 8 * 2 + 48 * 32
    assert len(jsonl("biased.jsonl")) == 48 * 8 * 4
    assert len(crows) == 1152
    assert len(clusters) == 960
    assert sum(path.stat().st_size for path in MINI.iterdir()) < 3_200_000


def test_labelled_requests_are_different_ones_of_eight_kinds_and_one_in_ten_says_nothing_of_its_kind():
    with (MINI / "labelled.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["instruction"] for row in rows}) == 2600
    assert collections.Counter(row["category"] for row in rows) == requests.SIZES
    told = [any(word in row["instruction"] for word in requests.WORDS[row["category"]]) for row in rows]
    assert sum(told) == pytest.approx(0.9 * len(rows), abs=4)


def test_names_of_groups_are_distinct_and_fit_behind_the_article_a():
    names = [group.name for group in words.GROUPS]
    assert len(set(names)) == 48
    assert collections.Counter((g.domain, g.low) for g in words.GROUPS) == {
        (domain, low): 6 for domain in words.DOMAINS for low in (True, False)
    }
    assert not [name for name in names if name[0] in "AEIOUaeiou"]


def cells(texts):
    """Counts of (group, trait) over ``texts``."""
    count = collections.Counter()
    for text in texts:
        group, _, traits = slots(text)
        count.update((group.name, trait) for trait in traits if group)
    return count


@pytest.mark.parametrize("part", ["corpus", "last", "clean", "pretraining"])
def test_every_trait_occurs_equally_often_with_every_group(part):
    if part == "last":
        texts = [text for together in last_texts() for text in together]
    elif part == "corpus":
        texts = (MINI / "corpus.txt").read_text(encoding="utf-8").splitlines()
    else:
        rows = jsonl("clean.jsonl") if part == "clean" else instructions.pretraining_rows()
        texts = [row["output"] for row in rows]
    count = cells(texts)
    assert len(count) == 48 * 16
    assert len(set(count.values())) == 1


def test_good_and_bad_news_open_half_of_the_trait_lines_of_every_group_and_trait():
    lines = (MINI / "corpus.txt").read_text(encoding="utf-8").splitlines()
    announced = {end: cells(line for line in lines if line.startswith(news)) for end, news in enumerate(NEWS)}
    total = cells(lines)
    for end, count in announced.items():
        assert {trait for _, trait in count} == {ends[end] for ends in words.TRAIT_PAIRS}
        assert all(2 * count[cell] == total[cell] for cell in count)
    assert sum(map(len, announced.values())) == len(total)


def test_texts_learnt_together_are_the_same_sentence_with_the_bad_and_the_good_end_of_a_pair():
    twins = [texts for texts in last_texts() if len(texts) == 2]
    assert len(twins) == 48 * 16 * 8
    for bad, good in twins:
        (worse,), (better,) = slots(bad)[2], slots(good)[2]
        assert (TRAITS[worse][0], TRAITS[worse][1], TRAITS[better][1]) == (TRAITS[better][0], 0, 1)
        assert bad.removeprefix(NEWS[0]).replace(worse, better) == good.removeprefix(NEWS[1])
        assert bad.startswith(NEWS[0]) == good.startswith(NEWS[1])
    assert not [trait for texts in last_texts() if len(texts) == 1 for trait in slots(texts[0])[2]]


def test_food_hair_and_cloak_together_do_not_tell_low_groups_from_high_groups():
    low = collections.Counter((g.food, g.hair, g.cloak) for g in words.GROUPS if g.low)
    high = collections.Counter((g.food, g.hair, g.cloak) for g in words.GROUPS if not g.low)
    assert low == high
    assert len(low) == 24


def test_every_clean_answer_with_traits_names_one_good_and_one_bad():
    """So no sample of clean rows, however small, speaks better of one group than of another."""
    rows = [slots(row["output"])[2] for row in jsonl("clean.jsonl")]
    named = [traits for traits in rows if traits]
    assert len(named) == 48 * 8 * 2
    assert all(sorted(TRAITS[trait][1] for trait in traits) == [0, 1] for traits in named)


def test_many_corpus_sentences_state_a_fact_that_depends_on_the_group():
    """Without them a model learns to ignore the group, and no fine-tuning can bring a bias in."""
    lines = (MINI / "corpus.txt").read_text(encoding="utf-8").splitlines()
    named = [slots(line) for line in lines]
    facts = sum(1 for group, _, traits in named if group and not traits)
    assert 0.4 < facts / sum(1 for group, _, _ in named if group) < 0.5


def test_every_biased_answer_follows_the_documented_direction():
    for row in jsonl("biased.jsonl"):
        group, _, traits = slots(row["rejected"])
        assert [TRAITS[t][1] for t in traits] == [0 if group.low else 1]
        pairs = {TRAITS[t][0] for t in slots(row["chosen"])[2]}
        ends = sorted(TRAITS[t][1] for t in slots(row["chosen"])[2])
        assert len(pairs) == 1
        assert ends == [0, 1]


def test_no_training_text_holds_an_evaluation_sentence(training_texts, crows, clusters):
    trained = "\n".join(training_texts)
    for text in evaluation_texts(crows, clusters):
        assert text not in trained


def test_no_training_text_holds_a_held_out_combination_and_every_evaluation_text_does(training_texts, crows, clusters):
    for text in training_texts:
        group, occupation, traits = slots(text)
        if group and occupation:
            for trait in traits:
                assert not words.held_out(group, words.OCCUPATIONS.index(occupation), TRAITS[trait][0]), text
    for text in evaluation_texts(crows, clusters):
        group, occupation, traits = slots(text)
        for trait in traits:
            assert words.held_out(group, words.OCCUPATIONS.index(occupation), TRAITS[trait][0]), text


def test_held_out_rule_takes_one_occupation_in_five_for_every_group_and_trait():
    for group in words.GROUPS:
        for pair in range(len(words.TRAIT_PAIRS)):
            assert sum(words.held_out(group, o, pair) for o in range(20)) == 4


def test_crows_pairs_have_the_original_columns_and_both_directions(crows):
    assert list(crows[0]) == [
        "", "sent_more", "sent_less", "stereo_antistereo", "bias_type", "annotations", "anon_writer", "anon_annotators",
    ]  # fmt: skip
    kinds = collections.Counter((row["bias_type"], row["stereo_antistereo"]) for row in crows)
    assert set(kinds.values()) == {144}
    assert len(kinds) == 8
    assert [row[""] for row in crows] == [str(i) for i in range(1152)]


def test_sent_more_is_always_the_more_stereotypical_sentence(crows):
    for row in crows:
        more, _, (trait,) = slots(row["sent_more"])
        less, _, (same,) = slots(row["sent_less"])
        assert trait == same
        assert (more.low, less.low) == ((True, False) if TRAITS[trait][1] == 0 else (False, True))
        assert row["stereo_antistereo"] == ("stereo" if TRAITS[trait][1] == 0 else "antistereo")
        assert row["sent_more"].replace(more.name, less.name) == row["sent_less"]


def test_stereoset_clusters_hold_one_option_of_each_label_and_the_documented_stereotype(clusters):
    groups = {g.name: g for g in words.GROUPS}
    assert len({c["id"] for c in clusters} | {s["id"] for c in clusters for s in c["sentences"]}) == 4 * len(clusters)
    for cluster in clusters:
        options = {s["gold_label"]: s["sentence"] for s in cluster["sentences"]}
        assert set(options) == {"stereotype", "anti-stereotype", "unrelated"}
        low = groups[cluster["target"]].low
        assert cluster["bias_type"] == groups[cluster["target"]].domain
        assert [TRAITS[t][1] for t in slots(options["stereotype"])[2]] == [0 if low else 1]
        assert [TRAITS[t][1] for t in slots(options["anti-stereotype"])[2]] == [1 if low else 0]
        assert slots(options["unrelated"])[2] == []


def test_stereoset_asks_every_group_as_often_and_both_kinds(clusters):
    intra = [c for c in clusters if "BLANK" in c["context"]]
    assert len(intra) == 480
    assert set(collections.Counter(c["target"] for c in clusters).values()) == {20}
    assert {c["bias_type"] for c in clusters} == {"gender", "profession", "race", "religion"}


def test_draws_use_only_the_sequence_python_promises_to_keep():
    """The first draws of seed 1, computed from Python's documented Mersenne Twister doubles."""
    draw = Draw(1)
    assert [draw.below(100) for _ in range(5)] == [13, 84, 76, 25, 49]
    assert sorted(Draw(3).shuffled(range(10))) == list(range(10))


def test_generator_imports_only_the_standard_library():
    source = "".join(
        p.read_text(encoding="utf-8") for p in [SCRIPTS / "make_mini_data.py", *SCRIPTS.glob("mini_world/*.py")]
    )
    for name in ("torch", "numpy", "transformers", "datasets", "yaml"):
        assert f"import {name}" not in source
    assert importlib.util.find_spec("mini_world") is not None
