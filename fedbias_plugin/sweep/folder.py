"""The folder of a sweep: ``sweep.json``, one file of flags, one folder and one log a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError, first_line, quoted
from fedbias_plugin.federation.checkpoints import LOCK, CheckpointFolder
from fedbias_plugin.files import write_json_atomic, write_text_atomic
from fedbias_plugin.known_flags import flags_for, free_to_change
from fedbias_plugin.redaction import redacted
from fedbias_plugin.study.runs import SWEEP_FILE
from fedbias_plugin.sweep.configs import Experiment, ModelConfig
from fedbias_plugin.sweep.plan import PlannedRun
from fedbias_plugin.tracking.jsonl import METRICS_FILE, SUMMARY_FILE
from fedbias_plugin.tracking.recorder import RUN_FILE

FORMAT = 1
OWN_NAMES = {SWEEP_FILE, LOCK, "runs", "logs", "configs", "shared", "slurm", "report", "study.yaml"}
DONE, TO_RESUME, TO_DO = "done", "to go on with", "to do"
UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError)


@dataclass(frozen=True)
class SweepFolder:
    """Where the runs of one model lie; ``path`` is made when the sweep begins."""

    path: Path

    def run(self, run: PlannedRun) -> Path:
        """The run's own folder."""
        return self.path / "runs" / run.name

    def log(self, run: PlannedRun) -> Path:
        """What the run printed."""
        return self.path / "logs" / f"{run.name}.log"

    def config(self, run: PlannedRun) -> Path:
        """The run's flags, as ``fedbias run --config`` takes them."""
        return self.path / "configs" / f"{run.name}.yaml"

    @property
    def shared(self) -> Path:
        """What is measured once for all runs."""
        return self.path / "shared"

    def state(self, run: PlannedRun) -> str:
        """``done``, ``to go on with`` or ``to do``."""
        if (self.run(run) / SUMMARY_FILE).is_file():
            return DONE
        return TO_DO if CheckpointFolder(self.run(run)).is_empty else TO_RESUME

    def rounds(self, run: PlannedRun) -> int:
        """Rounds that the run has recorded after round 0."""
        try:
            return max(0, (self.run(run) / METRICS_FILE).read_bytes().count(b"\n") - 1)
        except OSError:
            return 0

    def check(self, model: ModelConfig, data: Mapping[str, str], planned: Sequence[PlannedRun]) -> None:
        """Refuse the folder of another sweep.

        Args:
            model: of this sweep.
            data: data set -> sha256 of its files.
            planned: this sweep's runs.

        Raises:
            UserError: the folder holds other things, runs of another model, of other data, or made with other flags.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file; give a folder.")
        stored = self._stored()
        if stored is None:
            others = sorted({path.name for path in self.path.iterdir()} - OWN_NAMES) if self.path.is_dir() else []
            if others:
                raise UserError(
                    f"--output {self.path} holds {quoted(others[0])} and no sweep; give a folder of its own."
                )
        elif stored["model"] != model.name:
            raise UserError(
                f"--output {self.path} is the sweep of the model {quoted(stored['model'])}, not of "
                f"{quoted(model.name)}; give another folder."
            )
        elif changed := sorted(name for name, digest in data.items() if stored["data"].get(name, digest) != digest):
            raise UserError(
                f"--output {self.path} is a sweep with other data ({', '.join(changed)}); give another folder, or "
                "the data it began with (--data_dir, FEDBIAS_DATA)."
            )
        for run in planned:
            self._check_run(run)

    def write(
        self,
        model: ModelConfig,
        data: Mapping[str, str],
        experiments: Sequence[Experiment],
        planned: Sequence[PlannedRun],
    ) -> None:
        """Record the sweep and its runs' flags; what earlier sweeps of the folder planned stays planned."""
        import yaml

        stored = self._stored() or {}
        known, data = stored.get("experiments", {}), {**stored.get("data", {}), **data}
        for experiment in experiments:
            before = known.get(experiment.name, {}).get("runs", ())
            runs = [run.name for run in planned if experiment.name in run.experiments]
            known[experiment.name] = {"title": experiment.title, "runs": list(dict.fromkeys([*before, *runs]))}
        for run in planned:
            write_text_atomic(self.config(run), yaml.safe_dump(dict(run.flags), sort_keys=True, allow_unicode=True))
        write_json_atomic(
            self.path / SWEEP_FILE,
            {"format": FORMAT, "model": model.name, "title": model.title, "data": data, "experiments": known},
        )

    def _stored(self) -> dict[str, Any] | None:
        path = self.path / SWEEP_FILE
        if not path.is_file():
            return None
        try:
            stored = dict(json.loads(path.read_bytes()))
            for name, kind in (("model", str), ("data", dict), ("experiments", dict)):
                if not isinstance(stored[name], kind):
                    raise TypeError(f"{name} is of the wrong type")
            for experiment in stored["experiments"].values():
                experiment["runs"] = [str(name) for name in experiment["runs"]]
        except UNREADABLE as error:
            raise UserError(f"{path} is damaged ({first_line(error)}); delete it, the runs are kept.") from None
        return stored

    def _check_run(self, run: PlannedRun) -> None:
        path = self.run(run) / RUN_FILE
        if not path.is_file():
            return
        try:
            stored = dict(json.loads(path.read_bytes())["config"])
            stored["aggregation"]
            stored["fed_alg"]
        except UNREADABLE as error:
            raise UserError(
                f"{path} is damaged ({first_line(error)}); move {path.parent} away to run it again."
            ) from None
        # Data are compared by what they hold, wherever they lie; a finished run has no other way to compare its model.
        unimportant = (free_to_change() - flags_for("numbers")) | flags_for("tracking")
        changed = [
            f"{name} {quoted(stored[name])} there, {quoted(value)} now"
            for name, value in json.loads(json.dumps(redacted(run.settings))).items()
            if name not in unimportant and name in stored and stored[name] != value
        ]
        if changed:
            raise UserError(
                f"{path.parent} was made with other flags ({'; '.join(changed[:4])}): that is the folder of another "
                "sweep. Give another --output, or the flags it was made with."
            )
