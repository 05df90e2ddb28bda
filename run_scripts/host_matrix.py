"""Patches, runs, kills, resumes and unpatches copies of OpenFedLLM checkouts, and prints a table of what worked.

Called by host_matrix.sh: ``host_matrix.py STACK=PYTHON... -- CHECKOUT[@COMMIT]...``. A run is main_sft.py or
main_dpo.py with the bundled model, three clients, one of them poisoned, BAMA, three rounds of two steps. A cell is
``yes`` or the last line that the step printed. Logs stay in the folder that is named at the end.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedbias_plugin.hosts.openfedllm.inspection import origin

FLAGS = "--model_name_or_path tiny --use_peft --num_clients 3 --sample_clients 3 --num_rounds 3 --max_steps 2 --seed 7 "
FLAGS += "--learning_rate 1e-2 --seq_length 256 --scenario 1B2C --client_samples 16 --data_dir mini --aggregation bama"
TEMPLATES = {"main_sft.py": "alpaca", "main_dpo.py": "vicuna_v1.1"}
LONGEST = 600
"""Seconds that a run may take."""


@dataclass
class Host:
    """A copy of a checkout, with one set of libraries.

    Attributes:
        folder: the copy.
        python: the interpreter that has the libraries.
        logs: where runs write what they print, and their folders.
    """

    folder: Path
    python: Path
    logs: Path

    def patch(self, command: str) -> str:
        """``yes`` where ``fedbias patch`` or ``unpatch`` ends well, else its reason."""
        log = self._call([str(self.python), "-m", "fedbias_plugin", command, "."], command)
        return "yes" if log is None else _reason(log)

    def run(self, script: str, name: str, *flags: str) -> tuple[str, Path | None]:
        """``yes`` or the reason, and the run's folder."""
        log = self._call(self._command(script, name, *flags), name)
        folder = self.output(name)
        return ("yes" if log is None and folder else _reason(log or self.logs / f"{name}.log")), folder

    def kill(self, script: str, name: str) -> Path | None:
        """The folder of a run that was killed once its first round was in a checkpoint."""
        with open(self.logs / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                self._command(script, name), cwd=self.folder, stdout=log, stderr=log, env=self._environment()
            )
            end = time.monotonic() + LONGEST
            while process.poll() is None and time.monotonic() < end:
                folder = self.output(name)
                if folder and list(folder.glob("checkpoints/round_00[12]/SHA256SUMS")):
                    break
                time.sleep(0.02)
            process.kill()
            process.wait()
        return self.output(name)

    def output(self, name: str) -> Path | None:
        """The run's folder, wherever the host made it."""
        return next((path.parent for path in (self.logs / name).rglob("metrics.jsonl")), None)

    def _command(self, script: str, name: str, *flags: str) -> list[str]:
        (self.logs / name).mkdir(exist_ok=True)
        given = [*FLAGS.split(), "--template", TEMPLATES[script], "--output_dir", str(self.logs / name), *flags]
        return [str(self.python), script, *given]

    def _call(self, command: list[str], name: str) -> Path | None:
        """None where the command ends well, else what it printed."""
        path = self.logs / f"{name}.log"
        with open(path, "wb") as log:
            try:
                ended = subprocess.run(
                    command, cwd=self.folder, stdout=log, stderr=log, env=self._environment(), timeout=LONGEST
                )
            except subprocess.TimeoutExpired:
                return path
        return None if ended.returncode == 0 else path

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}


def row(host: Host, found: str, commit: str, stack: str) -> list[str]:
    """The cells of a checkout: name, commit, libraries, patch, SFT, DPO, resume, unpatch."""
    before = digests(host.folder)
    cells = [found, commit, stack, host.patch("patch")]
    if cells[-1] != "yes":
        return [*cells, *["-"] * 3, "-"]
    said = (host.logs / "patch.log").read_text()
    left_out = dict(re.findall(r"Note: (main_\w+\.py): (not .*)", said))
    sft, whole = (left_out["main_sft.py"], None) if "main_sft.py" in left_out else host.run("main_sft.py", "sft")
    dpo = left_out.get("main_dpo.py") or host.run("main_dpo.py", "dpo")[0]
    resumed = resume(host, whole) if sft == "yes" else "-"
    unpatched = host.patch("unpatch")
    same = digests(host.folder) == before
    return [*cells, sft, dpo, resumed, unpatched if same else "a byte differs"]


def resume(host: Host, whole: Path | None) -> str:
    """Whether a killed run ends with the adapter of a whole one."""
    cut = host.kill("main_sft.py", "resumed")
    if cut is None or whole is None or (cut / "summary.json").exists():
        return "not killed in time"
    result, _ = host.run("main_sft.py", "resumed", "--resume_from", str(cut))
    if result != "yes":
        return result
    adapters = [(folder / "adapter/adapter_model.safetensors").read_bytes() for folder in (whole, cut)]
    return "yes" if adapters[0] == adapters[1] else "another adapter"


def digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of everything in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def copies(checkouts: list[str], into: Path) -> Iterator[tuple[Path, str, str]]:
    """A copy of every checkout without its history, its name and its commit."""
    for number, checkout in enumerate(checkouts):
        path, _, commit = checkout.partition("@")
        source, target = Path(path).expanduser().resolve(), into / f"{number}_{Path(path).name}"
        git = next((folder for folder in (source, *source.parents) if (folder / ".git").exists()), None)
        name, _, head = origin(git or source).rpartition(" at ")
        if commit:
            target.mkdir()
            archive = subprocess.run(["git", "-C", str(source), "archive", commit], check=True, stdout=subprocess.PIPE)
            subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)
        else:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", "__pycache__"), symlinks=True)
        yield target, name or source.name, commit or head


def _reason(log: Path) -> str:
    """The last line that says something, short enough for a table."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("fedbias: error:")]
    last = lines[lines.index(errors[0]) + 1] if errors and errors[0].endswith("nothing was changed.") else ""
    raised = [line for line in lines if re.match(r"\w+(Error|Exception|Exit): ", line)]
    text = last or (errors or raised or lines or ["nothing was said"])[-1]
    text = re.sub(r" \(/.*", "", text.removeprefix("fedbias: error:").strip())  # no path of this machine
    return text.replace("|", "/")[:120]


def main() -> None:
    """Print a row as soon as it is known."""
    if "--" not in sys.argv:
        sys.exit(__doc__)
    split = sys.argv.index("--")
    stacks = dict(pair.split("=", 1) for pair in sys.argv[1:split])
    place = Path(tempfile.mkdtemp(prefix="fedbias_hosts_"))
    print("| checkout | commit | libraries | patch | SFT | DPO | resume | unpatch |", "|---" * 8 + "|", sep="\n")
    for copy, name, commit in copies(sys.argv[split + 1 :], place):
        for stack, python in stacks.items():
            logs = place / f"{copy.name}_{stack}"
            logs.mkdir()
            host = Host(copy, Path.cwd() / python, logs)
            print(f"| {' | '.join(row(host, name, commit, stack))} |", flush=True)
    print(f"Logs: {place}", file=sys.stderr)


if __name__ == "__main__":
    main()
