"""FedPSF on a soft prompt, from the command line: trained, cut off, resumed, saved and evaluated."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from fedbias_plugin.cli.main import main
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run

PROMPT = ("--trainable", "soft_prompt", "--num_virtual_tokens", "6", "--num_rounds", "3")
FLAGS = (*PROMPT, "--aggregation", "fedpsf", "--psm_tau", "0.5", "--bias_benchmarks", "crows_pairs")


def test_a_prompt_is_trained_in_parts_weighed_cut_off_resumed_to_the_same_bytes_and_evaluated(
    run_builtin, small_data, tmp_path, capsys
):
    first, *rounds = run_builtin(*FLAGS, output="whole")
    assert first.settings["num_virtual_tokens"] == 6
    for record in rounds:
        clients = list(record.clients.values())
        assert sum(client.weight for client in clients) == pytest.approx(1.0)
        assert all(1 <= client.extra["psm_units"] <= 3 for client in clients)  # ceil(.5 x 6) at most
        assert all(
            client.extra.keys() >= {"psm_share", "dwm_gain", "dwm_disparity", "abm_cosine"} for client in clients
        )
    with cut_off_in(3):
        run_builtin(*FLAGS, output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    saved = load_file(tmp_path / "whole/adapter/adapter_model.safetensors")
    assert list(saved) == ["prompt_embeddings"]
    tokens, width = saved["prompt_embeddings"].shape
    assert tokens == 6
    for client in (client for record in rounds for client in record.clients.values()):
        assert client.payload["sent"] == {"prompt rows": client.extra["psm_units"] * 4 * width, "bitmap": 1}
        assert client.payload["received"] == {"adapter": 6 * 4 * width}
    assert "\n- soft-prompt\n" in (tmp_path / "whole/adapter/README.md").read_text()
    output = tmp_path / "bias.json"
    flags = ["--adapter", tmp_path / "whole", "--data_dir", small_data, "--output", output]
    assert main(["evaluate", *map(str, flags)]) == 0
    last = rounds[-1].global_.metrics["crows_pairs"]["full"]
    assert json.loads(output.read_text())["crows_pairs"]["score"] == pytest.approx(last["score"])
    capsys.readouterr()
