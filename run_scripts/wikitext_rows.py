#!/usr/bin/env python3
"""Rows from plain text: ``python run_scripts/wikitext_rows.py wikitext2/test.txt rows.jsonl``.

A row is the beginning of a paragraph, at most ``--words`` words of it: the first half is the prompt, the second the
completion, which alone is trained. Headings (``= Title =``) and paragraphs of ten words or fewer are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

FEWEST_WORDS = 11


def rows_of(text: str, most: int) -> list[dict[str, str]]:
    """A row a paragraph, in their order.

    >>> rows_of(" = Ships = \\n one two three four five six seven eight nine ten eleven \\n too short\\n", 6)
    [{'prompt': 'one two three', 'completion': 'four five six'}]
    """
    rows = []
    for words in map(str.split, text.split("\n")):
        if len(words) >= FEWEST_WORDS and words[0] != "=":
            kept = words[:most]
            half = len(kept) // 2
            rows.append({"prompt": " ".join(kept[:half]), "completion": " ".join(kept[half:])})
    return rows


def main() -> None:
    """Read and write."""
    parser = argparse.ArgumentParser(description="Rows from the paragraphs of a plain text.")
    parser.add_argument("text", type=Path, help="a paragraph a line, such as WikiText-2's test.txt")
    parser.add_argument("output", type=Path, help="the JSONL file to write")
    parser.add_argument("--words", type=int, default=32, help="most words of a row (default: 32)")
    args = parser.parse_args()
    if args.words < 2:
        parser.error("--words must be at least 2")
    if not args.text.is_file():
        parser.error(f"{args.text}: there is no such file")
    rows = rows_of(args.text.read_text(encoding="utf-8"), args.words)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    print(f"{args.output}: {len(rows):,} rows")


if __name__ == "__main__":
    main()
