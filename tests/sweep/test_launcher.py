"""A launcher of somebody else's: a class with its flags, and a name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fedbias_plugin import registry
from fedbias_plugin.cli.main import main
from fedbias_plugin.options import option
from fedbias_plugin.sweep.base import Launcher

EXPERIMENT = "name: mine\nseeds: [1, 2]\narguments: {client_samples: 8, heldout_samples: 2}\ngrid: {scenario: 3C}\n"


@dataclass
class Queue(Launcher):
    """Flags of --launcher queue."""

    queue_name: str = option("night", "of the two, which queue", choices=("day", "night"))

    @property
    def at_once(self):
        return self.jobs or 7

    def run(self, jobs, folder, on_running, on_end):
        for job in jobs:
            on_end(job, f"lost in the {self.queue_name} queue after {job.command[-1]}")


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setitem(registry.EXTENSIONS["launcher"], "queue", "tests.sweep.test_launcher:Queue")


def test_its_flags_are_flags_of_the_sweep_and_what_it_says_of_a_run_is_told(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    command = ["sweep", str(tmp_path / "mine.yaml"), "--data_dir", "mini", "--output", str(tmp_path / "out")]
    assert main([*command, "--launcher", "queue", "--queue_name", "day"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    for seed in (1, 2):
        run = f"fedavg_3C_plain_seed-{seed}"
        assert f"{run}: FAILED, lost in the day queue after {tmp_path}/out/runs/{run}: it left no log" in shown
    assert main([*command, "--launcher", "queue", "--queue_name", "noon"]) == 2
    assert "--queue_name 'noon' is unknown" in capsys.readouterr().err


def test_help_shows_it_beside_ours(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--launcher {local,slurm,queue}" in shown
    assert "Flags of --launcher queue: --queue_name TEXT of the two, which queue; one of day, night" in shown
