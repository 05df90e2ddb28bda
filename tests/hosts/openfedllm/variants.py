"""Copies of the double made like other checkouts of OpenFedLLM, as ``variants.yaml`` describes them."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import Any

import yaml

from tests.hosts.openfedllm.runner import dpo_flags, sft_flags

DOUBLE = Path(__file__).parents[1] / "openfedllm_double"
VARIANTS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("variants.yaml").read_text("utf-8"))


def make_variant(name: str, folder: Path) -> Path:
    """Makes ``folder``, a copy of the double that is like the checkout ``name`` stands for. It is not patched."""
    described = VARIANTS[name]
    if "like" in described:
        make_variant(described["like"], folder)
    else:
        shutil.copytree(DOUBLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text in described.get("add", {}).items():
        (folder / file).write_text(text, encoding="utf-8")
    for file, edits in described.get("edits", {}).items():
        replace_once(folder / file, edits)
    for file, first in described.get("into_main", {}).items():
        put_into_main(folder / file, first)
    return folder


def variant_flags(name: str, script: str, model: Path, data: Path, output: Path) -> list[str]:
    """The flags of a short run: those of ``sft_flags`` or ``dpo_flags`` that the variant knows, and those it needs."""
    described = VARIANTS[name]
    flags = (sft_flags if script == "main_sft.py" else dpo_flags)(model, data, output)
    lacks = lookup(described, "lacks", [])
    flags = [part for n, part in enumerate(flags) if not {part, flags[n - 1]} & set(lacks)]
    return flags + lookup(described, "flags", {}).get(script, "").format(data=data).split()


def lookup(described: dict[str, Any], key: str, default: Any) -> Any:
    """The variant's own value, or else that of the one it starts from."""
    if key in described or "like" not in described:
        return described.get(key, default)
    return lookup(VARIANTS[described["like"]], key, default)


def replace_once(path: Path, edits: list[list[str]]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in edits:
        if text.count(old) != 1:
            raise ValueError(f"{old!r} stands {text.count(old)} times in {path.name}")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def put_into_main(path: Path, first: str) -> None:
    """What stands from the line ``first`` on becomes the body of ``main``, its names local ones."""
    text = path.read_text(encoding="utf-8")
    if text.count(f"\n{first}\n") != 1:
        raise ValueError(f"{first!r} stands {text.count(first)} times in {path.name}")
    before, _, after = text.partition(f"\n{first}\n")
    body = textwrap.indent(f"{first}\n{after}", "    ")
    path.write_text(f'{before}\n\ndef main():\n{body}\n\nif __name__ == "__main__":\n    main()\n', encoding="utf-8")
