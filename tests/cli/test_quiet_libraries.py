"""What libraries say to their developers is not said to the user of a command."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.logs import quiet_libraries


@pytest.mark.parametrize("flags", [["--use_peft"], []])
def test_a_run_on_a_terminal_draws_no_bar_of_a_library(flags, random_model, small_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    given = {"model_name_or_path": random_model, "data_dir": small_data, "output_dir": tmp_path / "run"}
    small = {"client_samples": 8, "heldout_samples": 2, "num_rounds": 1, "max_steps": 1, "bias_benchmarks": "none"}
    assert (
        main(["run", *flags, *(part for item in (given | small).items() for part in (f"--{item[0]}", str(item[1])))])
        == 0
    )
    errors = capsys.readouterr().err
    assert "Loading weights" not in errors
    assert "Writing model shards" not in errors
    assert "it/s]" not in errors


def test_notices_about_losses_and_pinned_memory_are_left_out_and_others_are_not():
    quiet_libraries()
    logger = logging.getLogger("transformers.modeling_utils")
    loss = "`loss_type=None` was set in the config but it is unrecognized. Using the default loss: `ForCausalLMLoss`."
    made = [logging.LogRecord(logger.name, logging.WARNING, "", 0, text, (), None) for text in (loss, "mind this")]
    assert [bool(logger.filter(record)) for record in made] == [False, True]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found, then ...", stacklevel=1)
        warnings.warn("mind this", stacklevel=1)
    assert [str(one.message) for one in caught] == ["mind this"]
