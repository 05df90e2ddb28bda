"""``run_scripts/openfedllm_table3.sh``: Table 3 as commands of a patched checkout, run on the interface double."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedbias_plugin.hosts.openfedllm.patcher import plan_patch

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "run_scripts/openfedllm_table3.sh"
FLAGS = "--num_rounds 1 --local_epochs 1 --client_samples 8 --batch_size 4 --seq_length 256 --heldout_samples 4"
SMALL = FLAGS.split()
NAMES = {"fedavg_host_seed-2023", "fedavg_bama-normalized_seed-2023", "fedavg_bama-paper_seed-2023"}


def is_current_stack() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


@pytest.mark.skipif(not is_current_stack(), reason="the report is made with the current libraries")
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_script_makes_every_run_once_and_the_report(double, host_model, host_data, small_data, tmp_path):
    plan_patch(double).write()
    output = tmp_path / "table3"
    flags = [*SMALL, "--local_data_dir", f"{host_data}/", "--data_dir", str(small_data)]
    first = table3(double, host_model, output, flags)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    runs = {path.parent.name: path for path in output.glob("*/*") if (path / "summary.json").is_file()}
    assert set(runs) == NAMES
    configs = {name: json.loads((path / "run.json").read_text())["config"] for name, path in runs.items()}
    assert [configs[name]["aggregation"] for name in sorted(NAMES)] == ["bama", "bama", "plain"]
    assert {config["scenario"] for config in configs.values()} == {"1B2C"}
    assert (output / "report/report.html").is_file()
    again = table3(double, host_model, output, flags)
    assert again.returncode == 0
    assert {path.parent.name: path for path in output.glob("*/*") if (path / "summary.json").is_file()} == runs


def table3(checkout, model, output, flags):
    environment = {
        **os.environ,
        **{"OPENFEDLLM_HOME": str(checkout), "MODEL": str(model), "SEEDS": "2023", "ALGORITHMS": "fedavg"},
        **{"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = ["bash", str(SCRIPT), str(output), *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
