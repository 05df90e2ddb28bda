"""Writes README's table of flags anew, from the flags themselves: ``python run_scripts/flag_table.py``."""

from __future__ import annotations

from pathlib import Path

from fedbias_plugin.options import flag_rows
from fedbias_plugin.registry import load

README = Path(__file__).parents[1] / "README.md"


def rows() -> list[str]:
    """The rows that README must hold: the plugin's flags, then the built-in host's."""
    return flag_rows(load("flags", "plugin"), load("flags", "builtin"))


def main() -> None:
    """Put the rows where the old ones are."""
    lines = README.read_text(encoding="utf-8").splitlines()
    old = [number for number, line in enumerate(lines) if line.startswith("| `--")]
    lines[old[0] : old[-1] + 1] = rows()
    README.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
