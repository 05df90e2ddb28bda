#!/usr/bin/env python3
"""Write the bundled mini data: a world of invented groups in which the truth about bias is known.

``python run_scripts/make_mini_data.py`` rewrites ``fedbias_plugin/assets/mini``; ``--check`` compares instead and
exits 1 when a file differs. Standard library only; the same bytes on every machine. ``docs/small-world.md`` explains
the world.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mini_world.benchmarks import CROWS_COLUMNS, crows_pairs, stereoset
from mini_world.instructions import Row, biased_rows, clean_rows
from mini_world.requests import labelled_requests
from mini_world.sentences import corpus

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "fedbias_plugin" / "assets" / "mini"


def as_jsonl(rows: list[Row]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; of that of CrowS-Pairs the first name in the header is empty."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def build() -> dict[str, str]:
    """File name -> content of every mini file."""
    return {
        "corpus.txt": "".join(line + "\n" for line in corpus()),
        "clean.jsonl": as_jsonl(clean_rows()),
        "biased.jsonl": as_jsonl(biased_rows()),
        "crows_pairs.csv": as_csv(CROWS_COLUMNS, crows_pairs()),
        "labelled.csv": as_csv(("instruction", "category"), labelled_requests()),
        "stereoset.json": json.dumps(stereoset(), indent=1) + "\n",
    }


def main() -> int:
    """Write or check the files; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write (or check) the bundled mini data.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the files")
    parser.add_argument("--check", action="store_true", help="compare with the files there and write nothing")
    args = parser.parse_args()
    files = build()
    if args.check:
        wrong = [n for n, text in files.items() if not _holds(args.output / n, text)]
        for name in wrong:
            print(
                f"{args.output / name} is not what the generator makes; run run_scripts/make_mini_data.py",
                file=sys.stderr,
            )
        return 1 if wrong else 0
    args.output.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (args.output / name).write_bytes(text.encode())
        print(f"{name}: {text.count(chr(10)):,} lines, {len(text.encode()):,} bytes")
    return 0


def _holds(path: Path, text: str) -> bool:
    """True when the file is there with exactly these bytes."""
    return path.is_file() and path.read_bytes() == text.encode()


if __name__ == "__main__":
    sys.exit(main())
