"""``fedbias doctor``: what this machine has, what is missing, and the line that mends it."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError, first_line, printable
from fedbias_plugin.machine import cores
from fedbias_plugin.terminal import say
from fedbias_plugin.versions import installed_version, version_numbers

GIB = 1024**3
MARKS = {"ok": "ok", "note": "--", "problem": "!!"}


@dataclass(frozen=True)
class Package:
    """A package the project uses: its lowest version that works, and what it is for."""

    name: str
    minimum: str
    purpose: str
    required: bool = True


PACKAGES = (
    Package("torch", "2.0", "models"),
    Package("transformers", "5.0", "models"),
    Package("peft", "0.18", "LoRA adapters"),
    Package("accelerate", "1.1", "training"),
    Package("datasets", "2.13", "data sets of the hub"),
    Package("safetensors", "0.3.3", "weights"),
    Package("numpy", "1.25", "statistics"),
    Package("pyarrow", "13", "parquet files"),
    Package("pyyaml", "6", "--config"),
    Package("rich", "13", "tables and progress bars"),
    Package("bitsandbytes", "0.43", "--load_in_8bit, --load_in_4bit", required=False),
    Package("wandb", "0.17", "--track wandb", required=False),
    Package("wandb-workspaces", "0.4", "fedbias wandb-workspace", required=False),
    Package("tensorboard", "2.13", "--track tensorboard", required=False),
    Package("matplotlib", "3.7", "fedbias report", required=False),
    Package("jinja2", "3.1", "fedbias report", required=False),
    Package("scipy", "1.10", "intervals and tests"),
    Package("submitit", "1.5", "fedbias sweep --launcher slurm", required=False),
    Package("rouge-score", "0.1.2", "--rouge_samples", required=False),
    Package("lm-eval", "0.4.13", "--bias_benchmarks harness:TASK", required=False),
    Package("trl", "0.7.2", "a patched OpenFedLLM", required=False),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        status: ``ok``, ``note`` (a feature is off) or ``problem`` (the main job cannot run).
        text: what was found.
        mend: the line that mends it, or empty.
    """

    status: str
    text: str
    mend: str = ""


def add_parser(subparsers: Any) -> None:
    """Add ``doctor`` to the subcommands of ``fedbias``."""
    parser = subparsers.add_parser(
        "doctor",
        help="versions, devices, data, and what is missing",
        description="Show versions, devices and data, and the line that mends what is missing. "
        "Exit code 0 when `fedbias run` can run, else 1. With CHECKOUT: what an OpenFedLLM checkout is and which "
        "of its scripts will run with the plugin; exit code 0 when one will. Nothing is sent or downloaded.",
    )
    parser.add_argument("checkout", nargs="?", metavar="CHECKOUT", help="folder of an OpenFedLLM checkout")
    parser.add_argument("--data_dir", help="folder with the data sets, as for fedbias run")
    parser.add_argument("--quick", action="store_true", help="do not import torch: no devices are listed")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print every finding; 0 when the main job can run, else 1."""
    sections = [
        ("machine", check_machine()),
        ("packages", check_packages()),
        ("devices", iter(()) if args.quick else check_devices()),
        ("data", check_data(args.data_dir)),
        ("Weights & Biases", check_wandb()),
        ("OpenFedLLM", check_openfedllm()),
    ]
    if args.checkout is not None:
        sections = [(args.checkout, check_checkout(args.checkout))]
    problems = 0
    for title, section in sections:
        heading = f"{title}\n"
        for finding in section:
            say(f"{heading}  {MARKS[finding.status]}  {printable(finding.text)}")
            if finding.mend:
                print(f"        {finding.mend}")
            heading = ""
            problems += finding.status == "problem"
    if args.checkout is None:
        print("fedbias run can run." if not problems else f"fedbias run cannot run: {problems} problem(s), marked !!.")
    return 1 if problems else 0


def check_machine() -> Iterator[Finding]:
    """Python, platform, cores and memory."""
    yield Finding("ok", f"Python {platform.python_version()}")
    yield Finding("ok", platform.platform())
    yield Finding("ok", f"{cores()} CPU cores")
    if installed_version("psutil") is not None:
        import psutil

        memory = psutil.virtual_memory()
        yield Finding("ok", f"{memory.total / GIB:.1f} GiB memory, {memory.available / GIB:.1f} GiB available")


def check_packages() -> Iterator[Finding]:
    """Installed versions, from the packages' metadata: nothing is imported."""
    missing = []
    for package in PACKAGES:
        installed, requirement = installed_version(package.name), f'"{package.name}>={package.minimum}"'
        if installed and version_numbers(installed) >= version_numbers(package.minimum):
            yield Finding("ok", f"{package.name} {installed}")
            continue
        found = f"{installed} is too old" if installed else "not installed"
        text = f"{package.name}: {found}; needs {package.minimum} or newer, for {package.purpose}"
        yield Finding("problem" if package.required else "note", text, f"pip install {requirement}")
        if package.required:
            missing.append(requirement)
    if len(missing) > 1:
        yield Finding("note", "all that is missing at once:", f"pip install {' '.join(missing)}")


def check_devices() -> Iterator[Finding]:
    """CUDA devices and bf16, as torch sees them."""
    if installed_version("torch") is None:
        yield Finding("note", "unknown without torch")
        return
    print("(importing torch to see the devices; --quick skips this)", file=sys.stderr, flush=True)
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken build raises OSError, ImportError, RuntimeError, ...
        yield Finding("problem", f"torch does not import: {first_line(error)}", "pip install --force-reinstall torch")
        return
    yield Finding("ok", f"CPU: {torch.get_num_threads()} threads, bf16 works (slower than fp32 on most CPUs)")
    if not torch.cuda.is_available():
        built_for = torch.version.cuda or getattr(torch.version, "hip", None)
        reason = "no driver or device answers" if built_for else "this torch is a CPU build"
        yield Finding("note", f"no CUDA device ({reason}): large models need one, the bundled tiny model does not")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use fp32"
        yield Finding("ok", f"cuda:{index} {properties.name}, {properties.total_memory / GIB:.1f} GiB, {bf16}")


def check_data(data_dir: str | None) -> Iterator[Finding]:
    """Where the bundled model and every data set the plugin knows are found."""
    from fedbias_plugin.assets import MINI_DATA, TINY_MODEL
    from fedbias_plugin.data.catalog import data_folders, find_on_disk, known_datasets, mini_files

    bundled = {f"bundled mini data, {kind}": MINI_DATA / file for kind, file in mini_files().items()}
    for what, path in {"bundled tiny model": TINY_MODEL / "config.json", **bundled}.items():
        if path.is_file():
            yield Finding("ok", what)
        else:
            mend = "pip install --force-reinstall .  (in the project's folder)"
            yield Finding("problem", f"{what}: {path} is missing", mend)
    try:
        list(data_folders(data_dir))
    except UserError as error:
        yield Finding("problem", str(error))
        return
    located = {name: find_on_disk(known, data_dir) for name, known in known_datasets().items()}
    for name, found in located.items():
        if found is not None:
            yield Finding("ok", f"{name}: {found.path} ({found.origin})")
    missing = [name for name, found in located.items() if found is None]
    if missing:
        yield Finding("note", f"not on this machine: {', '.join(missing)}", f"fedbias data fetch {' '.join(missing)}")


def check_wandb() -> Iterator[Finding]:
    """Whether W&B has a login; the server is not asked."""
    from fedbias_plugin.tracking.wandb_server import import_wandb, login_source, server_url

    if installed_version("wandb") is None:
        yield Finding("note", "not installed: --track wandb is off, metrics.jsonl has every number")
        return
    try:
        url = server_url(import_wandb())
    except ImportError as error:
        yield Finding("note", f"{error}: --track wandb is off", "pip install -U wandb")
        return
    source = login_source(url)
    if source is None:
        yield Finding("note", f"no login for {url}: runs are recorded offline", "wandb login")
    else:
        yield Finding("ok", f"login for {url} found in {source} (not checked with the server)")


def check_openfedllm() -> Iterator[Finding]:
    """Whether a patched OpenFedLLM can run with the libraries of this Python."""
    from fedbias_plugin.hosts.openfedllm.stack import detect_stack

    try:
        stack = detect_stack()
    except UserError as error:
        reason, *mend = str(error).splitlines()
        yield Finding("note", f"a patched OpenFedLLM cannot run here: {reason}", "\n        ".join(mend))
        return
    old = "; fedbias run needs the current ones" if stack == "pinned" else ""
    yield Finding("ok", f"the libraries that a patched OpenFedLLM needs are here, the {stack} ones{old}")


def check_checkout(folder: str) -> Iterator[Finding]:
    """What a checkout is, whether it is patched, and what of it will run, told from its files."""
    from fedbias_plugin.hosts.openfedllm.inspection import origin
    from fedbias_plugin.hosts.openfedllm.patcher import MISSING, plan_patch

    if os.path.isdir(folder):
        yield Finding("ok", origin(Path(folder)))
    try:
        plan = plan_patch(folder)
    except UserError as error:
        yield Finding("problem", str(error))
        return
    yield Finding("ok", f"a checkout of the {plan.family} family")
    if any(script.changes for script in plan.scripts if script.lines):
        yield Finding("note", "not patched, or by an earlier version", f"fedbias patch {shlex.quote(folder)}")
    else:
        yield Finding("ok", "patched")
    for script in plan.scripts:
        if script.lines:
            kind = "DPO" if "dpo" in script.name else "SFT"
            yield Finding("ok", f"{script.name}: {kind} has all that the plugin needs to poison, measure and weigh")
    yield from (Finding("problem" if MISSING in note else "note", note) for note in plan.notes)
    yield from check_openfedllm()
