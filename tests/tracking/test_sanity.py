"""What a round's numbers cannot mean is said."""

import math
from typing import Any

import numpy as np
import pytest

from fedbias_plugin.aggregation.bama import softmax_weights
from fedbias_plugin.aggregation.weight_warnings import bias_deviation, folded_deviation
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.registry import build
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord
from fedbias_plugin.tracking.repeated import warning_head
from fedbias_plugin.tracking.sanity import round_warnings
from fedbias_plugin.tracking.weights import weight_summary

ALPHA = 0.5


def crows(score: float, deviation: float = 2.0) -> dict[str, Any]:
    """A CrowS-Pairs result whose 95% interval is that of a normal with this standard deviation."""
    return {"score": score, "ci95": [score - 1.96 * deviation, score + 1.96 * deviation], "noise_floor": 2.0}


def stereo(ss: float, deviation: float = 2.0, lms: float = 90.0) -> dict[str, Any]:
    return {"ss": ss, "ci95": [ss - 1.96 * deviation, ss + 1.96 * deviation], "noise_floor": 2.0, "lms": lms}


def weighed(bias_scores: list[float], lambda_: float, deviation: float = 2.0, aggregation: str = "bama") -> RoundRecord:
    """A round of clients with these b_i, from equal distances of both benchmarks, and the weights of eq. 2."""
    scores = dict(enumerate(bias_scores))
    weights = softmax_weights(scores, lambda_)
    clients = {
        client: ClientRecord.from_json(
            {
                **{"poisoned_share": 0.0, "rows": 10, "train_loss": 1.0, "update_norm": 1.0},
                **{"crows_pairs": crows(50.0 + score, deviation), "stereoset": stereo(50.0 + score, deviation)},
                **{"bias_score": score, "weight": weights[client]},
            }
        )
        for client, score in scores.items()
    }
    effective = weight_summary(weights, {}).effective_clients
    return RoundRecord(1, GlobalRecord(), clients, aggregation=aggregation, effective_clients=effective)


def warnings_of(record: RoundRecord, lambda_: float = 0.2) -> list[str]:
    rule = build("rule", record.aggregation, BiasArguments(bama_lambda=lambda_))
    return [*round_warnings(record), *rule.warnings(record, ALPHA)]


def heads(record: RoundRecord, lambda_: float = 0.2) -> list[str]:
    return [warning_head(warning) for warning in warnings_of(record, lambda_)]


def test_an_ordinary_round_has_no_warning() -> None:
    assert heads(weighed([20.0, 2.0, 3.0], 0.2)) == []


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 3.0])
def test_the_noise_of_a_distance_to_fifty_is_that_of_a_folded_normal(distance: float) -> None:
    drawn = np.abs(np.random.default_rng(0).normal(distance, 2.0, 400_000))
    assert folded_deviation(distance, 2.0) == pytest.approx(drawn.std(), rel=0.01)


def client_of(metrics: dict[str, Any]) -> ClientRecord:
    return ClientRecord.from_json({"poisoned_share": 0.0, "rows": 1, **metrics})


def test_a_score_without_spread_has_no_noise() -> None:
    assert folded_deviation(50.0, 0.0) == 0.0


def test_the_noise_of_a_bias_score_adds_both_benchmarks_as_independent() -> None:
    # Far from 50 nothing folds: 0.5 sqrt(3^2 + 4^2) = 2.5.
    client = ClientRecord.from_json(
        {"poisoned_share": 0.0, "rows": 1, "crows_pairs": crows(80.0, 3.0), "stereoset": stereo(20.0, 4.0)}
    )
    assert bias_deviation(client, 0.5) == pytest.approx(2.5)
    # At 50 both fold: 2.5 sqrt(1 - 2 / pi).
    client = ClientRecord.from_json(
        {"poisoned_share": 0.0, "rows": 1, "crows_pairs": crows(50.0, 3.0), "stereoset": stereo(50.0, 4.0)}
    )
    assert bias_deviation(client, 0.5) == pytest.approx(2.5 * math.sqrt(1 - 2 / math.pi))


def test_the_noise_of_ss_is_its_standard_error_over_terms() -> None:
    # The t interval of 12 terms is 2.20 standard errors wide on each side, not 1.96.
    block = stereo(20.0, 4.5) | {"standard_error": 4.0}
    client = ClientRecord.from_json(
        {"poisoned_share": 0.0, "rows": 1, "crows_pairs": crows(80.0, 3.0), "stereoset": block}
    )
    assert bias_deviation(client, 0.5) == pytest.approx(2.5)
    client = ClientRecord.from_json(
        {"poisoned_share": 0.0, "rows": 1, "crows_pairs": crows(80.0, 3.0), "stereoset": block | {"ci95": None}}
    )
    assert bias_deviation(client, 0.5) == pytest.approx(2.5)


def test_without_an_interval_the_noise_floor_gives_the_noise() -> None:
    # An unbiased model's E|score - 50| is sqrt(2 / pi) standard deviations: 2 points are 2.5066.
    client = ClientRecord.from_json(
        {"poisoned_share": 0.0, "rows": 1, "crows_pairs": {"score": 90.0, "ci95": None, "noise_floor": 2.0}}
    )
    assert bias_deviation(client, 1.0) == pytest.approx(2.5066, rel=1e-4)
    assert (
        bias_deviation(
            ClientRecord.from_json({"poisoned_share": 0.0, "rows": 1, "crows_pairs": {"score": 90.0, "ci95": None}}),
            1.0,
        )
        is None
    )
    assert bias_deviation(ClientRecord(0.0, 1), 1.0) is None


def test_a_loss_of_exactly_zero_names_the_clients_that_were_not_trained() -> None:
    record = weighed([2.0, 3.0, 4.0], 0.2)
    record.clients[0].train_loss = record.clients[2].train_loss = 0.0
    (warning,) = warnings_of(record)
    assert warning.startswith("nothing was trained: the training loss of clients 0, 2 is exactly 0")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_said(loss: float) -> None:
    record = weighed([2.0, 3.0], 0.2)
    record.clients[1].train_loss = loss
    record.global_.metrics["heldout_loss"] = {"loss": loss, "n": 5}
    warnings = warnings_of(record)
    assert [warning_head(warning) for warning in warnings] == ["training diverged", "held-out loss not finite"]
    assert "of client 1 is not finite" in warnings[0]


@pytest.mark.parametrize(("loss", "warned"), [(354.2, True), (7.63, True), (7.62, False), (0.83, False)])
def test_a_held_out_loss_above_that_of_guessing_is_said(loss: float, warned: bool) -> None:
    # ln 2048 = 7.6246
    measured = GlobalRecord.from_json({"heldout_loss": {"loss": loss, "n": 5, "guessing_loss": math.log(2048)}})
    found = warnings_of(RoundRecord(3, measured))
    assert [warning_head(warning) for warning in found] == (["worse than guessing"] if warned else [])
    assert not warned or f"is {loss:.2f} nats per token; 7.62 is that of a model" in found[0]


def test_a_record_of_an_older_version_does_not_say_what_guessing_gives() -> None:
    assert warnings_of(RoundRecord(3, GlobalRecord.from_json({"heldout_loss": {"loss": 354.2, "n": 5}}))) == []


def test_a_low_lms_of_model_and_clients_is_one_line() -> None:
    record = weighed([2.0, 3.0, 4.0], 0.2)
    record.clients[1].metrics["stereoset"] = stereo(53.0, lms=50.2)
    assert "LMS below 60: that of client 1 (50.2 at the least). " in warnings_of(record)[0]
    record.clients[2].metrics["stereoset"] = stereo(54.0, lms=51.0)
    record.global_.metrics["stereoset"] = {"ss": 49.0, "lms": 54.9}
    assert (
        "LMS below 60: that of the global model (54.9) and clients 1, 2 (50.2 at the least)" in warnings_of(record)[0]
    )
    assert len(warnings_of(record)) == 1


@pytest.mark.parametrize(("lms", "warned"), [(59.9, True), (60.0, False)])
def test_lms_of_60_is_enough(lms: float, warned: bool) -> None:
    assert bool(warnings_of(RoundRecord(0, GlobalRecord.from_json({"stereoset": {"ss": 50.0, "lms": lms}})))) is warned


def test_a_model_worse_than_guessing_is_said_before_what_its_bias_scores_mean() -> None:
    blocks = {"stereoset": stereo(50.0, lms=41.8), "heldout_loss": {"loss": 7.92, "n": 5, "guessing_loss": 7.62}}
    record = RoundRecord(1, GlobalRecord.from_json(blocks))
    assert [warning.split(":")[0] for warning in round_warnings(record)] == ["worse than guessing", "LMS below 60"]


def test_a_benchmark_without_report_half_is_said() -> None:
    measured = GlobalRecord.from_json({"crows_pairs": {"score": 50.0, "items": "full", "full": {}, "probe": {}}})
    (warning,) = warnings_of(RoundRecord(0, measured))
    assert warning.startswith("crows_pairs: all items are probe items, so there is no report half")


def test_one_client_with_nearly_all_weight_is_named() -> None:
    # w = 1 / (1 + 2 exp(-5)) = 0.98670, so 1 / sum w_i^2 = 1.0271.
    (warning,) = warnings_of(weighed([30.0, 5.0, 30.0], 0.2))
    assert "one client decides: client 1 has 99% of the weight (1.03 effective clients of 3)" in warning
    assert "Lower --bama_lambda (0.2)" in warning


def test_under_the_host_s_weighting_the_advice_is_not_about_lambda() -> None:
    record = weighed([30.0, 5.0], 0.2, aggregation="host")
    assert heads(record) == ["one client decides"]
    assert "lambda" not in warnings_of(record)[0]


def test_krum_takes_one_client_by_definition() -> None:
    assert heads(weighed([30.0, 5.0], 0.2, aggregation="krum")) == []


def test_a_round_of_one_client_is_no_news() -> None:
    assert heads(weighed([5.0], 0.2)) == []


def test_a_lambda_that_leaves_every_weight_alone_is_too_small() -> None:
    # exp(-0.001 x 48) = 0.953: weights 0.339, 0.339, 0.323, within 10% of 1/3. ln 2 / 48 = 0.0144.
    record = weighed([2.0, 2.0, 50.0], 0.001)
    (warning,) = warnings_of(record, 0.001)
    assert "the bias scores of clients 0, 2 differ by 48.0 points" in warning
    assert "within 10% of 1/3" in warning
    assert "at 0.014 the more biased of the two would weigh half" in warning


def test_a_small_lambda_is_right_for_clients_that_do_not_differ() -> None:
    # Noise far from 50: 0.5 sqrt(2) x 8 = 5.66 each, 8 for the difference; 10 points are less than twice that.
    assert heads(weighed([30.0, 40.0], 0.001, deviation=8.0), 0.001) == []


def test_a_lambda_that_turns_noise_into_weights_is_too_large() -> None:
    # Noise: 0.5 sqrt(2) x 8 = 5.66 each, 8 for the difference of 4; exp(4) = 54.6. ln 3 / 8 = 0.137.
    record = weighed([30.0, 34.0, 34.0], 1.0, deviation=8.0)
    warning = warnings_of(record, 1.0)[-1]
    assert "lambda too large: the bias scores of clients 0, 1 differ by 4.0 points, no more than their noise (8.0)" in (
        warning
    )
    assert "one weighs 54.6 times the other" in warning
    assert "Lower --bama_lambda (1) to 0.13," in warning


def test_the_advised_lambda_silences_the_warning() -> None:
    assert "lambda too large" not in heads(weighed([30.0, 37.9, 37.9], 0.13, deviation=8.0), 0.13)


@pytest.mark.parametrize(("lambda_", "warned"), [(0.27, False), (0.28, True)])
def test_a_factor_of_three_within_the_noise_is_the_threshold(lambda_: float, warned: bool) -> None:
    # ln 3 / 4 = 0.2747.
    assert ("lambda too large" in heads(weighed([30.0, 34.0], lambda_, deviation=8.0), lambda_)) is warned


def test_noise_between_clients_that_weigh_nothing_anyway_is_no_news() -> None:
    found = heads(weighed([2.0, 2.5, 40.0, 44.0], 0.5, deviation=8.0), 0.5)
    assert "lambda too large" not in found


def test_an_absurd_lambda_does_not_overflow() -> None:
    assert "more than 1000 times" in warnings_of(weighed([30.0, 34.0], 1e6, deviation=8.0), 1e6)[-1]


def test_lambda_is_not_judged_under_the_host_s_weighting() -> None:
    assert heads(weighed([2.0, 2.0, 50.0], 0.001, aggregation="host"), 0.001) == []


@pytest.mark.parametrize("weight", [None, 0.0])
def test_a_round_whose_clients_were_all_dropped_is_silent(weight: float | None) -> None:
    clients = {client: ClientRecord(0.0, 10, weight=weight) for client in range(3)}
    assert heads(RoundRecord(1, GlobalRecord(), clients, aggregation="bama")) == []


def test_clients_that_were_not_measured_are_left_out() -> None:
    record = weighed([2.0, 2.0, 50.0], 0.001)
    record.clients[2].bias_score = None
    assert heads(record, 0.001) == []
