"""What a run holds does not grow with its rounds."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from fedbias_plugin.federation.checkpoints import CheckpointFolder

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
SETTLED, ROUNDS = 8, 24


@pytest.mark.skipif(sys.platform != "linux", reason="counts mapped files in /proc")
@pytest.mark.parametrize("states", ["memory", "disk"])
def test_24_rounds_hold_no_more_files_maps_or_memory_than_8(run_builtin, monkeypatch, states):
    process, held = psutil.Process(), {}
    write = CheckpointFolder.write

    def look(self, checkpoint):
        write(self, checkpoint)
        maps = Path("/proc/self/maps").read_text().splitlines()
        held[checkpoint.round] = (
            process.num_fds(),
            sum(".safetensors" in line for line in maps),
            process.memory_info().rss,
        )

    monkeypatch.setattr(CheckpointFolder, "write", look)
    flags = (
        "--fed_alg",
        "scaffold",
        "--num_rounds",
        str(ROUNDS),
        "--max_steps",
        "1",
        "--bias_benchmarks",
        "crows_pairs",
    )
    run_builtin(*LORA, *flags, "--local_states", states)
    (files, maps, memory), (files_later, maps_later, memory_later) = held[SETTLED], held[ROUNDS]
    assert files_later == files
    assert maps_later == maps
    assert memory_later - memory < 12 * 2**20
