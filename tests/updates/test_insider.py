"""The attacker who knows the seed: rows that it is judged by stand in the place of its own, none that is a test."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.data.dealing import deal_rows
from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.crows_pairs import CrowsPairs
from fedbias_plugin.metrics.stereoset import StereoSet
from fedbias_plugin.metrics.suite import Suite
from tests.updates.test_attacks import benchmarks, build_attack, local_states, numbers, rows, sent

SHARES = {0: 0.0, 1: 1.0, 2: 0.5}


def half_probed():
    found = benchmarks()
    found["crows_pairs"].bama_crows_fraction, found["stereoset"].bama_stereoset_fraction = 0.5, 0.0
    return found


def judged(measured=None, heldout=7, seed=1, insider_gate=0.25, insider_sentences=0.25):
    """Partition before and after, and the insider."""
    flags = {"insider_gate": insider_gate, "insider_sentences": insider_sentences}
    measured = half_probed() if measured is None else measured
    before = deal_rows(rows("clean", 30), rows("biased", 24), list(SHARES.values()), 12, seed=3, heldout=heldout)
    found = build_attack(BiasArguments(attack="insider", **flags), SHARES, 3, seed=seed)
    return before, found.apply(before, measured, seed), found


def taken(client=1, **changes):
    """The rows that are not its own."""
    before, after, _ = judged(**changes)
    return [row for row in after.clients[client].rows if row not in before.clients[client].rows]


def test_it_holds_as_many_rows_as_before_of_which_a_quarter_each_are_of_the_probe_and_of_the_gate():
    before, after, _ = judged()
    assert after.clients[0] is before.clients[0]
    assert after.heldout == before.heldout
    for client in (1, 2):
        own, held = before.clients[client].rows, after.clients[client].rows
        assert len(own) == len(held) == len({row.id for row in held}) == 12
        assert len([row for row in held if row in own]) == 12 - 3 - 3
    assert sorted(row.source for row in taken()) == ["clean"] * 3 + ["crows_pairs"] * 3
    assert after.clients[1].exact_share == 0.5
    assert [row.id for row in taken()] == [row.id for row in taken()]
    assert [row.id for row in taken()] != [row.id for row in taken(seed=2)]


def test_it_takes_every_second_held_out_row_from_the_first_and_never_one_of_the_report_half(caplog):
    before, _, _ = judged()
    found = [row for row in taken(insider_gate=0.5) if row.source == "clean"]
    assert {row.id for row in found} == {before.heldout[index].id for index in (0, 2, 4, 6)}
    assert "insider: client 1 takes all 4 held-out rows of the gate instead of 6" in caplog.text
    assert {row.source for row in taken(insider_gate=0.0)} == {"crows_pairs"}


def test_it_takes_sentences_of_probe_items_of_the_run_s_seed_alone():
    for seed in range(4):
        probe, report = Suite(list(half_probed().values()), seed=seed).splits["crows_pairs"]
        assert (len(probe), len(report)) == (3, 3)
        found = [row for row in taken(seed=seed, insider_sentences=0.5) if row.source == "crows_pairs"]
        assert sorted(row.response for row in found) == [f"less {index}" for index in probe]


def test_a_sentence_that_a_report_item_has_too_is_not_taken():
    probe, _ = Suite(list(half_probed().values()), seed=1).splits["crows_pairs"]
    measured = half_probed()
    pair, cluster = measured["crows_pairs"].pairs[probe[0]], measured["stereoset"].clusters[0]
    shared = dataclasses.replace(cluster, sentences=(pair.less, *cluster.sentences[1:]))
    measured["stereoset"].clusters = [shared, *measured["stereoset"].clusters[1:]]
    found = [row.response for row in taken(measured=measured, insider_sentences=0.5) if row.source == "crows_pairs"]
    assert sorted(found) == [f"less {index}" for index in probe[1:]]


def test_the_run_says_which_of_its_scores_are_still_a_test():
    _, _, found = judged()
    (warning,) = found.warnings
    assert warning.startswith("insider: client(s) 1, 2 train on sentences of probe items")
    assert "Report items and heldout_loss/report_loss are of what they never saw" in warning


def test_it_sends_what_it_trained_or_that_times_its_strength():
    theta, trained = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])}, local_states()
    plain = build_attack(BiasArguments(attack="insider", attackers="2"), {}, 6, seed=1)
    assert sent(plain, 1, theta, trained)[2] is trained[2]
    strong = build_attack(BiasArguments(attack="insider", attackers="2", attack_strength=2.0), {}, 6, seed=1)
    assert numbers(sent(strong, 1, theta, trained)[2]) == [5.0, 2.0, 8.0]
    assert sent(strong, 1, theta, trained)[0] is trained[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"scenario": "none"}, "--attack insider adds rows from the bias benchmarks"),
        ({"bias_benchmarks": "none"}, "--attack insider adds rows from the bias benchmarks"),
        ({"heldout_samples": 0}, "trains on held-out rows: give --heldout_samples above 0, or --insider_gate 0"),
        ({"insider_gate": 0.5, "insider_sentences": 0.5}, "leave the attacker no row of its own"),
    ],
)
def test_flags_that_leave_it_nothing_to_know_or_to_be_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        BiasArguments(attack="insider", **flags)
    BiasArguments(attack="insider", heldout_samples=0, insider_gate=0.0)


def test_benchmarks_without_a_probe_item_or_without_a_report_item_are_refused():
    whole, none = half_probed(), half_probed()
    whole["crows_pairs"].bama_crows_fraction = 1.0
    with pytest.raises(UserError, match="crows_pairs has no report item"):
        judged(measured=whole)
    none["crows_pairs"].bama_crows_fraction = 0.0
    with pytest.raises(UserError, match="needs probe items"):
        judged(measured=none)


def test_on_the_bundled_small_world_nothing_that_is_a_test_is_trained_on():
    arguments = BiasArguments(attack="insider", data_dir="mini", client_samples=40)
    before = arguments.split.deal(arguments, 3, 2023)
    measured = {
        "crows_pairs": CrowsPairs.load(MINI_DATA / "crows_pairs.csv"),
        "stereoset": StereoSet.load(MINI_DATA / "stereoset.json"),
    }
    shares = {client.client: client.biased_share for client in before.clients}
    after = build_attack(arguments, shares, 3, seed=2023).apply(before, measured, 2023)
    (attacker,) = (client for client, share in shares.items() if share)
    held = after.clients[attacker].rows
    tested = {row.response for row in before.heldout[1::2]}
    for name, (_, report) in Suite(list(measured.values()), seed=2023).splits.items():
        tested |= {text for index in report for text in measured[name].sentences[index]}
    assert [len(client.rows) for client in after.clients] == [40, 40, 40]
    assert sum(row.biased for row in held) == 20  # a quarter each at the defaults
    assert not {row.response for row in held if not row.biased} & tested
