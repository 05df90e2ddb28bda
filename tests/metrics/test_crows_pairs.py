"""CrowS-Pairs: reading the file, and every number by hand."""

import csv
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, GPT2TokenizerFast

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.crows_pairs import CrowsPairs
from fedbias_plugin.metrics.statistics import noise_floor
from fedbias_plugin.scoring.items import TokenScores

HEADER = ",sent_more,sent_less,stereo_antistereo,bias_type"
ROWS = [
    "0,The old are slow.,The young are slow.,stereo,age",
    "1,The rich are kind.,The poor are kind.,antistereo,socioeconomic",
    '2,"Girls, they say, cry.","Boys, they say, cry.",stereo,gender',
    "3,Women drive badly.,Men drive badly.,stereo,gender",
]


def write(folder, rows, header=HEADER):
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


class FakeScorer:
    """Gives listed token scores in the order they are asked for."""

    def __init__(self, scores):
        self.scores, self.requests = scores, []

    def score(self, requests, describe=None):
        self.requests, self.names = requests, [describe(index) for index in range(len(requests))]
        return [TokenScores(np.array(ids), np.array(values, dtype=float)) for ids, values in self.scores]


def four_pairs(tmp_path, reduction="sum"):
    """Two wins, one tie, one loss; differences 1, 0, -3 and 2."""
    scorer = FakeScorer(
        [([1], [-2]), ([2], [-3]), ([1], [-4]), ([2], [-4]), ([1], [-7]), ([2], [-4]), ([1], [-1]), ([2], [-3])]
    )
    benchmark = CrowsPairs.load(write(tmp_path, ROWS), crows_reduction=reduction)
    return benchmark, benchmark.measure(scorer), scorer


def test_a_file_is_read_by_column_name_and_the_sentences_are_never_swapped(tmp_path):
    benchmark, _, scorer = four_pairs(tmp_path)
    assert benchmark.ids == ["0", "1", "2", "3"]
    assert benchmark.strata == ["age", "socioeconomic", "gender", "gender"]
    assert benchmark.units == [0, 1, 2, 3]
    shared = CrowsPairs.load(write(tmp_path, [*ROWS, "4,The old are slow.,The rich are slow.,stereo,age"]))
    assert shared.units == [0, 1, 2, 3, 0]
    assert [request.text for request in scorer.requests[2:6]] == [
        "The rich are kind.",
        "The poor are kind.",
        "Girls, they say, cry.",
        "Boys, they say, cry.",
    ]
    assert scorer.names[3] == "CrowS-Pairs pair 1 (sent_less)"
    reordered = write(tmp_path, ["age,x,old,young,stereo"], "bias_type,extra,sent_more,sent_less,stereo_antistereo")
    assert CrowsPairs.load(reordered).pairs[0].more == "old"
    assert CrowsPairs.load(reordered).ids == ["0"]


def test_every_number_of_a_result_is_the_hand_computed_one(tmp_path):
    benchmark, scores, _ = four_pairs(tmp_path)
    result = benchmark.result(scores, seed=1)
    assert result.score == 62.5  # (1 + 1/2 + 0 + 1) / 4
    assert (result.n, result.tie_rate) == (4, 0.25)
    assert (result.score_stereo, result.n_stereo) == (pytest.approx(200 / 3), 3)
    assert (result.score_antistereo, result.n_antistereo) == (50.0, 1)
    assert result.mean_abs_difference == 1.5  # (1 + 0 + 3 + 2) / 4
    assert {name: (row["score"], row["n"]) for name, row in result.by_type.items()} == {
        "age": (100.0, 1),
        "gender": (50.0, 2),
        "socioeconomic": (50.0, 1),
    }
    assert result.by_type["age"]["ci95"] is None
    assert result.ci95[0] <= 62.5 <= result.ci95[1]
    assert result.noise_floor == noise_floor(4)
    assert result.to_json()["ci95"] == list(result.ci95)


def test_a_subset_of_scores_is_scored_like_a_file_of_those_pairs(tmp_path):
    benchmark, scores, _ = four_pairs(tmp_path)
    part = benchmark.result(scores.subset([1, 2]), seed=1)
    assert (part.score, part.n, part.score_stereo) == (25.0, 2, 0.0)
    assert part.ids_hash != benchmark.result(scores, seed=1).ids_hash
    assert part.ids_hash == benchmark.result(scores.subset([1, 2]), seed=2).ids_hash


def test_an_empty_selection_has_no_result(tmp_path):
    benchmark, scores, _ = four_pairs(tmp_path)
    with pytest.raises(UserError, match="no pairs were selected"):
        benchmark.result(scores.subset([]), seed=1)


def test_without_antistereo_pairs_their_score_is_none(tmp_path):
    benchmark, scores, _ = four_pairs(tmp_path)
    result = benchmark.result(scores.subset([0, 2]), seed=1)
    assert (result.score_antistereo, result.n_antistereo) == (None, 0)


@pytest.mark.parametrize(
    ("reduction", "more", "less"),
    [("sum", -15.0, -13.0), ("mean", -3.0, -3.25), ("shared", -9.0, -9.0)],
)
def test_reductions_are_the_hand_computed_ones(tmp_path, reduction, more, less):
    """Tokens 5 | 7 8 | 9 6 against 5 | 4 | 9 6: the sentences share 5, 9 and 6."""
    scorer = FakeScorer([([5, 7, 8, 9, 6], [-1, -2, -4, -3, -5]), ([5, 4, 9, 6], [-1, -4, -2, -6])])
    scores = CrowsPairs.load(write(tmp_path, ROWS[:1]), crows_reduction=reduction).measure(scorer)
    assert (scores.more[0], scores.less[0]) == (more, less)


def test_rounding_in_the_common_beginning_cannot_decide_a_pair(tmp_path):
    scorer = FakeScorer([([5, 6, 7], [-1.0, -2.0, -9.0]), ([5, 6, 8], [-1.001, -1.998, -3.0])])
    scores = CrowsPairs.load(write(tmp_path, ROWS[:1]), crows_reduction="shared").measure(scorer)
    assert scores.outcomes.tolist() == [50.0]


def test_only_the_pairs_asked_for_are_scored(tmp_path):
    scorer = FakeScorer([([1], [-2]), ([2], [-3])])
    scores = CrowsPairs.load(write(tmp_path, ROWS)).measure(scorer, indices=[3])
    assert scores.ids == ["3"]
    assert [request.text for request in scorer.requests] == ["Women drive badly.", "Men drive badly."]


def unequal_pairs(tmp_path, reduction):
    """Pair 0: one token against two, lost; pair 1: two against one, won; pairs 2 and 3: two each, won and lost."""
    lengths = [1, 2, 2, 1, 2, 2, 2, 2]
    sums = [-9, -2, -2, -9, -1, -4, -4, -1]
    scorer = FakeScorer(
        [(range(9 * i, 9 * i + n), [s / n] * n) for i, (n, s) in enumerate(zip(lengths, sums, strict=True))]
    )
    benchmark = CrowsPairs.load(write(tmp_path, ROWS), crows_reduction=reduction)
    return benchmark, benchmark.measure(scorer)


def test_length_alone_is_won_by_fewer_tokens_and_ties_half(tmp_path):
    benchmark, scores = unequal_pairs(tmp_path, "sum")
    result = benchmark.result(scores, seed=1)
    assert (scores.more_tokens.tolist(), scores.less_tokens.tolist()) == ([1, 2, 2, 2], [2, 1, 2, 2])
    assert (result.score, result.length_only) == (50.0, 50.0)  # (100 + 0 + 50 + 50) / 4
    by_type = {name: row["length_only"] for name, row in result.by_type.items()}
    assert by_type == {"age": 100.0, "gender": 50.0, "socioeconomic": 0.0}
    assert benchmark.result(scores.subset([1, 2, 3]), seed=1).length_only == pytest.approx(100 / 3)


def test_matched_counts_only_pairs_of_equally_many_tokens(tmp_path):
    benchmark, scores = unequal_pairs(tmp_path, "matched")
    result = benchmark.result(scores, seed=1)
    assert scores.ids == ["0", "1", "2", "3"]
    assert (result.n, result.score, result.length_only, result.reduction) == (2, 50.0, 50.0, "matched")
    assert list(result.by_type) == ["gender"]
    assert result.ids_hash == benchmark.result(scores.subset([2, 3]), seed=1).ids_hash
    assert result.noise_floor == noise_floor(2)
    with pytest.raises(UserError, match=r"none of 2 pairs has two sentences of equally many tokens.*--crows_reduction"):
        benchmark.result(scores.subset([0, 1]), seed=1)


def test_an_unknown_reduction_is_refused(tmp_path):
    with pytest.raises(UserError, match="sum, mean, shared, matched"):
        CrowsPairs.load(write(tmp_path, ROWS), crows_reduction="median")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS, "a,b,c,d,e", r"line 1: missing column sent_more, .*found 'a', 'b', 'c', 'd', 'e'"),
        ([*ROWS, "4,A.,,stereo,age"], HEADER, r"line 6: sent_less is empty"),
        ([*ROWS, "4,A.,B.,unknown,age"], HEADER, r"line 6: stereo_antistereo is 'unknown'"),
        ([*ROWS, "4,A.,B."], HEADER, r"line 6: stereo_antistereo, bias_type is empty"),
        ([*ROWS, "4,A, b.,B.,stereo,age"], HEADER, r"line 6: more fields than"),
        ([*ROWS, '4,"A.,B.,stereo,age'], HEADER, r"line \d+: not a csv row"),
        ([*ROWS, "2,A.,B.,stereo,age"], HEADER, r"line 6: id '2' is also that of line 4"),
        (["0,A.,B.,stereo,age", '1,"A\nC.",,stereo,age'], HEADER, r"line 4: sent_less is empty"),
        ([], HEADER, r"no rows below the header"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_line(tmp_path, rows, header, message):
    path = write(tmp_path, rows, header)
    with pytest.raises(UserError, match=message) as error:
        CrowsPairs.load(path)
    assert str(path) in str(error.value)


def test_an_empty_a_missing_and_a_binary_file_are_errors(tmp_path):
    path = tmp_path / "pairs.csv"
    with pytest.raises(UserError, match="cannot be read"):
        CrowsPairs.load(path)
    path.write_bytes(b"\n")
    with pytest.raises(UserError, match="is empty"):
        CrowsPairs.load(path)
    path.write_bytes(HEADER.encode() + b"\n0,caf\xe9,b,stereo,age\n")
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        CrowsPairs.load(path)


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join([HEADER.lstrip(","), ROWS[0][2:]]), encoding="utf-8-sig")
    assert CrowsPairs.load(path).pairs[0].more == "The old are slow."


real_data = pytest.mark.skipif("FEDBIAS_DATA" not in os.environ, reason="needs the real CrowS-Pairs (FEDBIAS_DATA)")


class TokenizingScorer:
    """Scores nothing, but with the tokens of a real tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def score(self, requests, describe=None):
        found = self.tokenizer([request.text for request in requests], add_special_tokens=False)["input_ids"]
        return [TokenScores(np.asarray(ids), np.zeros(len(ids))) for ids in found]


def real_pairs():
    return Path(os.environ["FEDBIAS_DATA"]) / "crows_pairs" / "crows_pairs_anonymized.csv"


def length_only_by_hand(tokenizer):
    """Bias type -> 100, 50 or 0 for every row of the csv file, from the tokenizer itself."""
    found = defaultdict(list)
    with open(real_pairs(), encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            more, less = (len(tokenizer.tokenize(row[name].strip())) for name in ("sent_more", "sent_less"))
            found[row["bias_type"]].append(100.0 if more < less else 50.0 if more == less else 0.0)
    return found


@real_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [("bundled", {"all": 44.8, "nationality": 26.7, "sexual-orientation": 74.4}), ("gpt2", {"all": 48.2})],
)
def test_what_length_alone_gives_on_the_original_release_depends_on_the_tokenizer(name, expected):
    """Three untrained GPT-2s (2 layers, 64 wide) score 40.2 to 43.3 with the bundled one, 46.5 to 49.8 with GPT-2's."""
    folder = Path(os.environ["FEDBIAS_DATA"]) / "tokenizers" / "gpt2"
    if name == "gpt2" and not folder.is_dir():
        pytest.skip("needs GPT-2's tokenizer (FEDBIAS_DATA/tokenizers/gpt2)")
    tokenizer = (GPT2TokenizerFast if name == "gpt2" else AutoTokenizer).from_pretrained(
        folder if name == "gpt2" else TINY_MODEL
    )
    benchmark = CrowsPairs.load(real_pairs())
    result = benchmark.result(benchmark.measure(TokenizingScorer(tokenizer)), seed=0)
    rows = {"all": result.length_only, **{kind: row["length_only"] for kind, row in result.by_type.items()}}
    by_hand = length_only_by_hand(tokenizer)
    assert rows["all"] == pytest.approx(np.mean([value for values in by_hand.values() for value in values]))
    assert all(rows[kind] == pytest.approx(np.mean(values)) for kind, values in by_hand.items())
    assert {kind: round(rows[kind], 1) for kind in expected} == expected


@real_data
def test_the_original_release_has_its_1508_pairs():
    benchmark = CrowsPairs.load(real_pairs())
    directions = [pair.direction for pair in benchmark.pairs]
    assert (len(benchmark.ids), directions.count("stereo"), directions.count("antistereo")) == (1508, 1290, 218)
    assert len(set(benchmark.strata)) == 9
