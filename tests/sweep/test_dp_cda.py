"""Private arms and others, on rows with a minority, without copies and with all: a sweep, its records, its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.study.report import write_report
from fedbias_plugin.tracking.jsonl import read_rounds

pytest.importorskip("opacus")
SCRIPTS = Path(__file__).parents[2] / "run_scripts"
EXPERIMENT = """
name: dp_small
seeds: [1]
arguments: {num_rounds: 1, max_steps: 2, client_samples: 24, heldout_samples: 4, scenario: 3C, dp_accountant: rdp,
  bias_benchmarks: "crows_pairs,gender_perplexity", gender_gradient_texts: 2, aggregation: plain}
grid: {dp_epsilon: [null, 10.0], cda_ratio: [0.0, 1.0]}
"""
NAMES = {
    (epsilon, ratio): f"fedavg_3C_plain{'_cda_ratio-1.0' * ratio}{'_dp_epsilon-10.0' * epsilon}_seed-1"
    for epsilon in (0, 1)
    for ratio in (0, 1)
}


@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the generator is in the source checkout only")
def test_a_sweep_of_private_arms_on_a_minority_measures_both_groups_and_its_report_compares_them(tmp_path, small_data):
    made, output = tmp_path / "made", tmp_path / "out"
    script = [sys.executable, SCRIPTS / "make_minority_rows.py", made, "--share", "0.25", "--rows", "200"]
    subprocess.run(script, check=True, capture_output=True)
    (tmp_path / "dp_small.yaml").write_text(EXPERIMENT)
    files = [
        "--clean_dataset",
        made / "rows.jsonl",
        "--cda_words",
        made / "words.txt",
        "--gender_texts",
        made / "texts.csv",
    ]
    given = ["sweep", tmp_path / "dp_small.yaml", "--data_dir", small_data, "--output", output, *files]
    assert main([str(part) for part in given]) == 0
    for (epsilon, ratio), name in NAMES.items():
        folder = output / "runs" / name
        manifest = json.loads((folder / "manifest.json").read_text())
        copies = [client.get("cda_copies") for client in manifest["clients"]]
        assert copies == ([24] * 3 if ratio else [None] * 3)
        first, last = read_rounds(folder / "metrics.jsonl")
        block = last.global_.metrics["gender_perplexity"]
        assert (block["n_female"], block["n_male"], block["gradient_texts"]) == (192, 192, 2)
        assert {"l1_gap", "l1_gap_ci95", "kept_gap"} <= block.keys()
        assert block["value"] != first.global_.metrics["gender_perplexity"]["value"]
        spent = [client.extra.get("dp_epsilon") for client in last.clients.values()]
        assert all(9 < one <= 10 for one in spent) if epsilon else spent == [None] * 3
    folder = write_report([output], tmp_path / "report", study_file="dp_cda").parent
    assert {"dp_bias.csv", "dp_gradients.csv"} <= {path.name for path in (folder / "tables").iterdir()}
    assert "not testable" in (folder / "report.md").read_text()  # one seed
