"""The README says what the code does."""

import dataclasses
import re
from pathlib import Path

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.hosts.builtin.arguments import HostArguments

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def flag_rows() -> list[str]:
    """The rows of README's table of flags, from the dataclasses."""
    rows = []
    for cls in (BiasArguments, HostArguments):
        for field in dataclasses.fields(cls):
            default = "" if field.default is None else f"`{field.default}`"
            rows.append(f"| `--{field.name}` | {default} | {field.metadata['help']} |")
    return rows


def test_the_table_of_flags_is_that_of_the_code():
    table = [line for line in README.splitlines() if line.startswith("| `--")]
    assert table == flag_rows()


def test_every_file_that_the_readme_links_to_exists():
    root = Path(__file__).parents[1]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (root / link).exists()] == []
