"""The README says what the code does."""

import re
from pathlib import Path

from fedbias_plugin.options import flag_rows
from fedbias_plugin.registry import load

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_table_of_flags_is_that_of_the_code():
    """After a change: python run_scripts/flag_table.py."""
    table = [line for line in README.splitlines() if line.startswith("| `--")]
    assert table == flag_rows(load("flags", "plugin"), load("flags", "builtin"))


def test_every_file_that_the_readme_links_to_exists():
    root = Path(__file__).parents[1]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_the_flags_that_a_patched_host_takes_are_those_down_to_the_one_named():
    last = flag_rows(load("flags", "plugin"))[-1].split("`")[1]
    assert f"takes the flags down to `{last}`" in README
