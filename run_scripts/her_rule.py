"""How often the rule for "her" and "his" is right where the answer is known: ``python run_scripts/her_rule.py``.

Every "his" and "him" of a text is a "her" whose answer stands there; every "their" and "theirs" a "his". Words that end
a text are left out: BOLD's prompts are cut there. Texts are looked for in FEDBIAS_DATA; those that are called unseen
were not looked at when the rule was written.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fedbias_plugin.data.gender_swap import is_object, stands_alone

DATA = Path(os.environ.get("FEDBIAS_DATA", "."))
NORMAL_QUANTILE = 1.959964


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share."""
    share, z2 = right / n, NORMAL_QUANTILE**2
    half = NORMAL_QUANTILE * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    return tuple((share + z2 / (2 * n) + sign * half) / (1 + z2 / n) for sign in (-1, 1))


def strings(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def of_json(pattern: str) -> Iterator[str]:
    """The texts of JSON and JSON-lines files."""
    for path in sorted(DATA.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            yield from strings(json.loads(part))


def novels(first: int) -> Iterator[str]:
    """Every second novel, by name."""
    with tarfile.open(DATA / "corpus/english_novels.tar.xz") as archive:
        held = {one.name: one for one in archive.getmembers() if one.isfile()}
        texts = {name: archive.extractfile(held[name]).read().decode(errors="replace") for name in held}
    return (texts[name] for name in sorted(texts)[first::2])


def line(
    name: str, texts: Iterable[str], words: tuple[str, str], is_second: Callable[[str, int, int], bool]
) -> Iterator[str]:
    """A row of the table for each of two words: how often the rule finds it."""
    right, n = Counter(), Counter()
    pattern = re.compile(rf"(?<!\w)({'|'.join(words)})(?!\w)", re.IGNORECASE)
    for text in texts:
        for match in pattern.finditer(text):
            if not text[match.end() :].strip():
                continue
            word = match[0].lower()
            n[word] += 1
            right[word] += is_second(text, match.start(), match.end()) == (word == words[1])
    for word in words:
        if n[word]:
            low, high = wilson(right[word], n[word])
            share = f"{100 * right[word] / n[word]:.1f}% | {100 * low:.1f} to {100 * high:.1f}"
            yield f"| {name} | {word} | {share} | {n[word]:,} |"


def main() -> None:
    """Print the table."""
    texts = {
        "Alpaca": list(of_json("alpaca/*.json")),
        "Dolly": list(of_json("dolly_fed10/*.json")),
        "WikiText-2": [path.read_text(encoding="utf-8") for path in sorted(DATA.glob("wikitext2/*.txt"))],
        "50 novels": list(novels(0)),
        "BOLD, unseen": list(of_json("bold/*.json")),
        "StereoSet, unseen": list(of_json("stereoset/dev.json")),
        "BiasDPO, unseen": list(of_json("biasdpo/*.jsonl")),
        "other 50 novels, unseen": list(novels(1)),
    }
    print("| text | word | right | 95% | n |\n|---|---|---|---|---|")
    for name, some in texts.items():
        for row in line(name, some, ("his", "him"), is_object):
            print(row)
    for name, some in texts.items():
        for row in line(name, some, ("their", "theirs"), lambda text, _, end: stands_alone(text, end)):
            print(row)


if __name__ == "__main__":
    main()
