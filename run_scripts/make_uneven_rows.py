#!/usr/bin/env python3
"""Write rows of the small world for clients that honestly differ: one with ten times the rows, one of another dialect.

``python run_scripts/make_uneven_rows.py FOLDER`` writes ``sizes.jsonl`` (column ``size``) and ``dialects.jsonl``
(column ``dialect``) for ``--partitioner by_field``, whose values are three clients. Standard library only; the same
bytes on every machine. ``run_scripts/defence.sh`` trains on them, ``docs/predictive.md`` says what for.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from make_mini_data import as_jsonl
from mini_world.sentences import Draw

CLEAN = Path(__file__).parent.parent / "fedbias_plugin" / "assets" / "mini" / "clean.jsonl"
SEED = 7
SIZES = {"a_small": 83, "b_large": 834, "c_small": 83}
DIALECTS = {"a_town": 183, "b_town": 183, "c_hills": 184}
"""Client -> rows; a tenth of the first and 100 of the second are held out of all of them."""
HILLS = {
    **{"the": "da", "a": "ae", "is": "be", "was": "wor", "does": "dun", "would": "wad", "and": "un", "or": "else"},
    **{"what": "wot", "where": "whaur", "how": "hoo", "from": "frae", "in": "intil", "at": "aat", "about": "anent"},
    **{"that": "yon", "this": "thon", "so": "sae", "people": "folk", "everyone": "aabody", "knows": "kens"},
    **{"say": "reckon", "tell": "telt", "write": "scrieve", "describe": "limn", "lives": "bides", "like": "akin"},
    **{"comes": "hails", "come": "hail", "eats": "sups", "eat": "sup", "wears": "dons", "wear": "don"},
}
"""Word of the town -> of the hills: function words and verbs. Groups, traits and trades have one name everywhere."""


def in_hills(text: str) -> str:
    """``text`` in the dialect of the hills.

    >>> in_hills("Where does the Sunborn shepherd come from?")
    'Whaur dun da Sunborn shepherd hail frae?'
    """

    def word(match: re.Match[str]) -> str:
        found = HILLS.get(match[0].lower(), match[0])
        return found.capitalize() if match[0][0].isupper() and match[0].lower() in HILLS else found

    return re.sub(r"[A-Za-z]+", word, text)


def build(seed: int = SEED) -> dict[str, str]:
    """File name -> content; rows are drawn of the bundled clean ones, each at most once a file."""
    rows = [json.loads(line) for line in CLEAN.read_text(encoding="utf-8").splitlines()]
    files = {}
    for number, (column, counts) in enumerate((("size", SIZES), ("dialect", DIALECTS))):
        values = [value for value, count in counts.items() for _ in range(count)]
        drawn = Draw(seed + number).shuffled(rows)[: len(values)]
        made = [{**row, column: value} for row, value in zip(drawn, values, strict=True)]
        for row in made:
            if row[column] == "c_hills":
                row |= {key: in_hills(row[key]) for key in ("instruction", "output")}
        files[f"{column}s.jsonl"] = as_jsonl(Draw(seed + number).shuffled(made))
    return files


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Rows of the small world for clients that honestly differ.")
    parser.add_argument("output", type=Path, help="folder of the files")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of all draws (default: {SEED})")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name, text in build(args.seed).items():
        (args.output / name).write_bytes(text.encode())
        print(f"{args.output / name}: {text.count(chr(10)):,} rows")


if __name__ == "__main__":
    main()
