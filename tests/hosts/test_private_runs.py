"""Runs with ``--dp_epsilon`` and ``--dp_noise_multiplier``: resumed, and with refused updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.training.accounting import epsilon_of
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run

pytest.importorskip("opacus")
LORA = ("--use_peft", "--bias_benchmarks", "none")
PRIVATE = (*LORA, "--dp_epsilon", "20", "--dp_accountant", "rdp", "--num_rounds", "3")
NOISY = (*LORA, "--dp_noise_multiplier", "1", "--dp_accountant", "rdp")


def spent(records: list[Any], client: int) -> list[float]:
    return [record.clients[client].extra["dp_epsilon"] for record in records[1:] if client in record.clients]


def test_a_private_run_says_what_it_will_spend_and_records_what_it_spent(run_builtin, capsys):
    records = run_builtin(*PRIVATE, "--fed_alg", "scaffold")
    said = capsys.readouterr().err
    assert "privacy of clients 0, 1, 2: 6 steps planned (2 a round), each row in a step with probability 0.5" in said
    for record in records[1:]:
        extras = [client.extra for client in record.clients.values()]
        assert len({extra["dp_sigma"] for extra in extras}) == 1
        cost = ("rdp", extras[0]["dp_sigma"], 0.5, 2 * record.round, 1 / 16)
        assert all(extra["dp_epsilon"] == extra["dp_epsilon_max"] == epsilon_of(*cost) for extra in extras)
        assert all(0 < extra["dp_clipped"] <= 1 < extra["dp_gradient_norm"] * 100 for extra in extras)
    assert 19.8 < records[-1].clients[0].extra["dp_epsilon_max"] <= 20


def test_a_client_that_trains_in_some_rounds_plans_those_alone(run_builtin):
    records = run_builtin(*PRIVATE, "--sample_clients", "2")
    taken = {client: [record.round for record in records if client in record.clients] for client in range(3)}
    assert sorted(map(len, taken.values())) != [3, 3, 3]
    for client, rounds in taken.items():
        if rounds:
            last = records[rounds[-1]].clients[client].extra
            assert 19.8 < last["dp_epsilon"] <= 20
            assert last["dp_epsilon"] == epsilon_of("rdp", last["dp_sigma"], 0.5, 2 * len(rounds), 1 / 16)


def test_a_private_run_that_was_cut_off_ends_in_the_same_bytes_and_epsilon(run_builtin, tmp_path):
    run_builtin(*PRIVATE, "--fed_alg", "fedprox", output="whole")
    with cut_off_in():
        run_builtin(*PRIVATE, "--fed_alg", "fedprox", output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.fixture
def swapped(tmp_path: Path) -> tuple[str, ...]:
    """Flags: half of the 8 rows of every client have a copy."""
    (tmp_path / "words.txt").write_text("number digit\nnurse baker\n")
    return ("--cda_ratio", "0.5", "--cda_words", str(tmp_path / "words.txt"))


def test_a_row_and_its_copy_are_planned_and_spent_as_one_unless_the_user_says_otherwise(run_builtin, swapped, capsys):
    pairs = run_builtin(*PRIVATE, *swapped, output="pair")
    said = capsys.readouterr().err
    assert "each of 8 units (a row with its copies) in a step with probability 0.5" in said
    rows = run_builtin(*PRIVATE, *swapped, "--cda_dp_unit", "row", output="row")
    assert "each row in a step with probability 0.3333" in capsys.readouterr().err
    for records, n in ((pairs, 8), (rows, 12)):
        last = records[-1].clients[0]
        assert (last.rows, last.extra["dp_delta"]) == (12, 1 / (2 * n))
        assert last.extra["dp_epsilon"] == epsilon_of("rdp", last.extra["dp_sigma"], 4 / n, 6, 1 / (2 * n))
        assert 19.8 < last.extra["dp_epsilon"] <= 20


def test_a_private_run_with_copies_that_was_cut_off_ends_in_the_same_bytes(run_builtin, swapped, tmp_path):
    run_builtin(*PRIVATE, *swapped, "--fed_alg", "scaffold", output="whole")
    with cut_off_in():
        run_builtin(*PRIVATE, *swapped, "--fed_alg", "scaffold", output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_substitutes_are_rows(run_builtin, swapped, capsys):
    run_builtin(*NOISY, *swapped, "--cda_mode", "substitute", "--num_rounds", "1")
    assert "each row in a step with probability 0.5" in capsys.readouterr().err


def test_a_refused_update_has_spent_its_budget_all_the_same(run_builtin):
    flags = (*NOISY, "--attack", "model_replacement", "--attackers", "1", "--max_update_norm", "1e-9")
    records = run_builtin(*flags, "--on_bad_update", "drop")
    assert all(record.clients[1].refused for record in records[1:])
    assert spent(records, 1) == [epsilon_of("rdp", 1.0, 0.5, steps, 1 / 16) for steps in (2, 4)]


@pytest.mark.parametrize("weights", ["true", "false"], ids=["lora", "full"])
def test_recomputed_activations_give_the_same_run_and_bama_weighs_it(run_builtin, weights):
    flags = ("--dp_noise_multiplier", "1", "--aggregation", "bama", "--num_rounds", "1", "--use_peft", weights)
    kept = run_builtin(*flags, output="kept")[1]
    again = run_builtin(*flags, "--gradient_checkpointing", "true", output="again")[1]
    for client, row in kept.clients.items():
        assert again.clients[client].update_norm == pytest.approx(row.update_norm, rel=1e-4)
        assert again.clients[client].train_loss == pytest.approx(row.train_loss, rel=1e-5)
        assert again.clients[client].weight == pytest.approx(row.weight, rel=1e-3)


def test_a_flag_of_privacy_without_privacy_is_said_to_do_nothing(run_builtin, capsys):
    run_builtin(*LORA, "--dp_max_grad_norm", "1", "--num_rounds", "1")
    said = capsys.readouterr().err
    assert "--dp_max_grad_norm has no effect without --dp_epsilon or --dp_noise_multiplier." in said


def test_clipping_without_noise_promises_nothing(run_builtin, capsys):
    records = run_builtin(*LORA, "--dp_noise_multiplier", "0", "--num_rounds", "1")
    assert "sigma 0: no promise" in capsys.readouterr().err
    assert "dp_epsilon" not in records[1].clients[0].extra


def test_a_loss_of_privacy_is_refused_before_the_model_is_read(run_builtin, tmp_path, capsys):
    run_builtin(*PRIVATE, "--dp_noise_multiplier", "1", code=2)
    assert "--dp_epsilon chooses the noise and --dp_noise_multiplier is the noise; give one." in capsys.readouterr().err
    run_builtin(*PRIVATE, "--bf16", code=2)
    assert "drop --bf16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_hosts_that_train_by_themselves_say_that_they_cannot(tmp_path: Path, small_data: Path):
    from fedbias_plugin import BiasSession
    from fedbias_plugin.errors import UserError
    from fedbias_plugin.hosts.openfedllm.arguments import AllArguments, AttachedArguments
    from fedbias_plugin.hosts.openfedllm.flags import check_arguments

    plugin = AttachedArguments(dp_epsilon=3.0)
    with pytest.raises(UserError, match="The term dp trains clients itself"):
        check_arguments(AllArguments(object(), object(), plugin))
    with pytest.raises(UserError, match="The term dp trains clients itself"):
        BiasSession.create(output_dir=tmp_path / "own", data_dir=str(small_data), dp_noise_multiplier=1.0)
