"""What dashboards show of a whole run."""

import itertools
from collections.abc import Callable

import pytest

from fedbias_plugin.tracking.highlights import Highlights
from fedbias_plugin.tracking.records import GlobalRecord, RoundRecord

Make = Callable[[int], RoundRecord]


def test_a_round_that_was_not_measured_changes_nothing(make_record: Make) -> None:
    highlights = Highlights()
    highlights.add(make_record(1))
    before = highlights.scalars(), highlights.category_rows()
    highlights.add(RoundRecord(2, GlobalRecord()))
    assert (highlights.scalars(), highlights.category_rows()) == before
    assert before[0]["final/round"] == 1


def test_a_run_without_bias_benchmarks_still_has_its_last_loss() -> None:
    highlights = Highlights()
    highlights.add(RoundRecord(3, GlobalRecord(heldout_loss={"loss": 0.0, "n": 4})))
    assert highlights.scalars() == {"final/round": 3, "final/heldout_loss": 0.0, "final/heldout_perplexity": 1.0}


@pytest.mark.parametrize("rounds", [1, 2, 9, 10, 11, 12, 57, 64])
def test_many_rounds_are_thinned_evenly_and_the_first_and_last_stay(make_record: Make, rounds: int) -> None:
    highlights = Highlights(most_rows=30)  # 3 rows a round: ten rounds
    for number in range(rounds):
        highlights.add(make_record(number))
    rows = highlights.category_rows()
    kept = list(dict.fromkeys(row[0] for row in rows))
    assert len(rows) <= 30
    assert (kept[0], kept[-1]) == (0, rounds - 1)
    gaps = {after - before for before, after in itertools.pairwise(kept[:-1])}
    assert len(gaps) <= 1
    if rounds <= 9:
        assert kept == list(range(rounds))
    else:
        assert len(kept) >= 5
