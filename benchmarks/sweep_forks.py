"""What a sweep gains by forking its runs from one process: against a process a run, in turn, with equal bytes.

    python benchmarks/sweep_forks.py -- table2 --model tiny --num_rounds 1 --client_samples 20 --data_dir mini

Seconds of the wall and of the CPU (user and system, of every process that the sweep leads to, its server included) and
their ratios. The first pair fills the cache of scoring plans and is not counted. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reporting import write_report

SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: processes that the sweep leaves behind become children of this one."""
TIMES = {"metrics.jsonl", "summary.json", "run.json"}
FORKED = "import sys; from fedbias_plugin.cli.main import main; sys.exit(main(sys.argv[1:]))"
ALONE = f"import fedbias_plugin.sweep.local as local; local.fork = lambda *_: None; {FORKED}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the ratios of wall and CPU seconds there")
    parser.add_argument("sweep", nargs="+", help="arguments of fedbias sweep, without --output")
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(given.repeats + 1):
            alone, forked = Path(folder, f"alone{repeat}"), Path(folder, f"forked{repeat}")
            times = [measured(code, given.sweep, output) for code, output in ((ALONE, alone), (FORKED, forked))]
            if digests(alone) != digests(forked):
                raise SystemExit("the bytes differ")
            shown = ", ".join(f"{wall:.1f} s wall {cpu:.1f} s CPU" for wall, cpu in times)
            ratio = [times[0][index] / times[1][index] for index in (0, 1)]
            print(f"{'not counted' if repeat == 0 else repeat}: {shown}; {ratio[0]:.2f} {ratio[1]:.2f}", flush=True)
            ratios += [ratio] if repeat else []
    for name, values in zip(("wall", "CPU"), zip(*ratios, strict=True), strict=True):
        print(f"{name}: {sum(values) / len(values):.2f} times faster [{min(values):.2f}, {max(values):.2f}]")
    write_report({"ratios": ratios}, given.json)


def measured(code: str, sweep: list[str], output: Path) -> tuple[float, float]:
    """Seconds of one sweep: of the wall, and of all its processes on the CPU."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-c", code, "sweep", *sweep, "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - begin
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def digests(output: Path) -> dict[str, str]:
    """Hash of every file of the runs that holds no times."""
    files = [path for path in (output / "runs").rglob("*") if path.is_file() and path.name not in TIMES]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main()
