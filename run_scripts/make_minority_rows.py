#!/usr/bin/env python3
"""Write rows of the small world in which LOW groups are a minority of known share, and what a study of them needs.

``python run_scripts/make_minority_rows.py FOLDER`` writes ``rows.jsonl`` (``--clean_dataset``), ``words.txt``
(``--cda_words``) and ``texts.csv`` (``--gender_texts``). Standard library only; the same bytes on every machine.
``run_scripts/dp_cda.sh`` trains on them, ``docs/privacy.md`` explains.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from make_mini_data import as_jsonl
from mini_world.minority import balanced_texts, minority_rows, word_pairs

SEED = 5


def build(share: float, rows: int, seed: int = SEED) -> dict[str, str]:
    """File name -> content.

    Raises:
        ValueError: there are not as many rows.
    """
    return {
        "rows.jsonl": as_jsonl(minority_rows(rows, share, seed)),
        "words.txt": word_pairs(),
        "texts.csv": balanced_texts(seed + 1),
    }


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Rows of the small world in which one kind of people is rare.")
    parser.add_argument("output", type=Path, help="folder of the files")
    parser.add_argument("--share", type=float, default=0.15, help="share of rows about LOW groups (default: 0.15)")
    parser.add_argument("--rows", type=int, default=1200, help="how many rows (default: 1200)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of all draws (default: {SEED})")
    args = parser.parse_args()
    if not 0 < args.share < 1 or args.rows < 1:
        parser.error(f"--share must be between 0 and 1 and --rows at least 1, got {args.share} and {args.rows}")
    try:
        files = build(args.share, args.rows, args.seed)
    except ValueError as error:
        parser.error(str(error))
    args.output.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (args.output / name).write_bytes(text.encode())
        print(f"{args.output / name}: {text.count(chr(10)):,} lines")


if __name__ == "__main__":
    main()
