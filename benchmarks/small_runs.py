"""What a small run spends beside its arithmetic: training against a bare PyTorch loop, measuring, and imports.

A run of the built-in host with the quickstart's settings and BAMA. After every client the same batches go through a
loop of five lines from the same weights, with the same optimizer, padding, dtype and random state; both must end in the
same bytes. Then processes of their own import the libraries. CPU seconds are those of the process, user and system.

    python benchmarks/small_runs.py --rounds 2 --json small_runs.json
    python benchmarks/small_runs.py --rounds 2 -- --client_samples 48
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from reporting import line, write_report

from fedbias_plugin.cli.main import main as fedbias
from fedbias_plugin.federation.client import Client
from fedbias_plugin.federation.live_model import LiveModel
from fedbias_plugin.training.base import ClientRound
from fedbias_plugin.training.isolation import training_mode
from fedbias_plugin.training.parameters import live_parameters, write_state
from fedbias_plugin.updates.base import Update

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
IMPORTS = """
import time
import fedbias_plugin.memory
from fedbias_plugin.cli.main import build_parser
build_parser()
with fedbias_plugin.memory.collector_paused():
    import fedbias_plugin.hosts.builtin.loop
print(time.process_time())
"""
"""What ``fedbias run`` imports before it reads anything; Python's own start counts too."""


@dataclass
class Spent:
    """CPU and wall seconds, summed."""

    cpu: float = 0.0
    wall: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add what the block takes."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall


@dataclass
class Batches:
    """What a client trained on: its batches, and torch's random state as each epoch began."""

    per_epoch: int
    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)

    def collator(self, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """``inner``, remembered."""

        def collate(features: Any) -> Any:
            if len(self.batches) % self.per_epoch == 0:
                self.states.append(torch.get_rng_state())
            self.batches.append(inner(features))
            return dict(self.batches[-1])

        return collate


def bare_loop(model: Any, seen: Batches, learning_rate: float) -> None:
    """Train what is trained of ``model`` on the batches, as a script of one's own would."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    model.train()
    for number, batch in enumerate(seen.batches):
        if number % seen.per_epoch == 0:
            torch.set_rng_state(seen.states[number // seen.per_epoch])
        model(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class Watch:
    """Times a run from within, and trains every client once more in the bare loop."""

    def __init__(self) -> None:
        self.of_parts = {name: Spent() for name in ("train", "assess", "evaluate")}
        self.pairs: list[tuple[Spent, Spent]] = []
        self.tokens = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within it every run of this process is timed."""
        fit, assess, evaluate = Client.fit, LiveModel.assess, LiveModel.evaluate

        def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.of_parts[part].timed():
                    return function(*args, **kwargs)

            return call

        def evaluated(live: LiveModel, number: int, *args: Any, **kwargs: Any) -> Any:
            return (timed("evaluate", evaluate) if number else evaluate)(live, number, *args, **kwargs)

        def trained(client: Client, job: ClientRound, features: Any) -> Update:
            return self.both(client, job, features, fit)

        with (
            mock.patch.object(Client, "fit", trained),
            mock.patch.object(LiveModel, "assess", timed("assess", assess)),
            mock.patch.object(LiveModel, "evaluate", evaluated),
        ):
            yield

    def both(self, client: Client, job: ClientRound, features: Any, fit: Callable[..., Update]) -> Update:
        """The client's update, and the same work in the bare loop."""
        settings, task = client.settings, client.task
        assert task is not None
        assert settings.gradient_accumulation_steps == 1
        assert not client.terms
        seen = Batches(-(-len(features) // settings.batch_size))
        collator = seen.collator(task.collator(client.pad_token_id))
        ours, theirs = Spent(), Spent()
        remembered = mock.patch.object(task, "collator", return_value=collator)
        with remembered, ours.timed(), self.of_parts["train"].timed():
            update = fit(client, job, features)
        write_state(client.model, job.theta)
        with training_mode(client.model, settings.gradient_checkpointing), theirs.timed():
            bare_loop(client.model, seen, settings.learning_rate_of(job.round_idx))
        parameters = live_parameters(client.model)
        assert all(torch.equal(update.state[name], one.detach()) for name, one in parameters.items()), "other bytes"
        self.tokens += sum(batch["attention_mask"].sum().item() for batch in seen.batches)
        self.pairs.append((ours, theirs))
        return update


def spread(ratios: list[float]) -> str:
    """Median [lowest, highest]."""
    return f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"


def trained(rounds: int, flags: list[str]) -> dict[str, Any]:
    """The figures of one run."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, watch.watching():
        run = ["run", "--config", str(CONFIG), "--num_rounds", str(rounds), "--aggregation", "bama"]
        code = fedbias([*run, "--output_dir", str(Path(folder) / "run"), *flags])
        assert code == 0, f"fedbias run ended with {code}"
    train = watch.of_parts["train"]
    return {
        "clients": len(watch.pairs),
        "train_cpu_s": train.cpu,
        "tokens_per_cpu_s": watch.tokens / train.cpu,
        "tokens_per_cpu_s_bare": watch.tokens / sum(bare.cpu for _, bare in watch.pairs),
        "ratio_cpu": spread([bare.cpu / ours.cpu for ours, bare in watch.pairs]),
        "ratio_wall": spread([bare.wall / ours.wall for ours, bare in watch.pairs]),
        **{f"{name}_share_cpu": watch.of_parts[name].cpu / train.cpu for name in ("assess", "evaluate")},
        **{f"{name}_share_wall": watch.of_parts[name].wall / train.wall for name in ("assess", "evaluate")},
    }


def imported(repeats: int) -> list[float]:
    """CPU seconds of a process that imports what ``fedbias run`` does."""
    command = [sys.executable, "-c", IMPORTS]
    return [float(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(repeats)]


def main() -> None:
    """Run everything and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--imports", type=int, default=3, help="processes that import; their median counts")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("flags", nargs="*", help="further flags of fedbias run, after --")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"rounds": options.rounds, "threads": options.threads, "torch": torch.__version__}
    report |= trained(options.rounds, options.flags)
    if options.imports:
        seconds = imported(options.imports)
        report |= {
            "import_cpu_s": statistics.median(seconds),
            "import_cpu_s_of": str([round(one, 2) for one in seconds]),
        }
    print(line(report))
    write_report(report, options.json)


if __name__ == "__main__":
    main()
