"""The README is short and its links lead somewhere; docs/flags.md holds the flags of the code."""

import re
import runpy
from dataclasses import fields
from pathlib import Path

from fedbias_plugin.registry import load, names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLAGS = (ROOT / "docs/flags.md").read_text(encoding="utf-8")
MOST_LINES, LONGEST_LINE = 130, 130


def test_the_tables_of_flags_are_those_of_the_code():
    """After a change: python run_scripts/flag_table.py."""
    assert runpy.run_path(str(ROOT / "run_scripts/flag_table.py"))["page"](FLAGS) == FLAGS


def test_every_flag_of_every_host_stands_in_one_table():
    known = {spec.name for host in names("flags") for spec in fields(load("flags", host))}
    assert sorted(re.findall(r"^\| `--(\w+)` \|", FLAGS, flags=re.M)) == sorted(known)


def test_the_tables_mark_the_flags_that_a_patched_host_takes():
    taken = set(re.findall(r"^\| `--(\w+)` \|[^|]*\| yes \|", FLAGS, flags=re.M))
    there = {spec.name for spec in fields(load("flags", "openfedllm"))}
    of_rows = {"dp_max_grad_norm", "dp_optimizer", "dp_accountant"}  # clients can be private there, rows cannot
    assert taken == there - {"task", "trainable"} - of_rows
    assert {"aggregation", "local_epochs", "preference_dataset"} <= taken
    assert not taken & {"num_rounds", "model_name_or_path", "output_dir"}


def test_every_file_that_the_readme_links_to_exists():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= MOST_LINES
    assert [line for line in lines if len(line) > LONGEST_LINE and not line.startswith("![")] == []
