"""What an installed package says of itself, and what the documents say of installing it."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("run_scripts/*.sh"),
    *ROOT.glob("fedbias_plugin/**/*.py"),
]


@pytest.fixture
def metadata(monkeypatch):
    """What setup.py tells setuptools."""
    told = {}
    monkeypatch.setattr(setuptools, "setup", told.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return told


def test_every_extra_that_a_document_or_a_message_names_exists(metadata):
    named = {
        (path.name, extra)
        for path in DOCUMENTS
        for extras in re.findall(r'"(?:fedbias_plugin|\.)\[([a-z][a-z,]*)\]"', path.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert {("README.md", "quantization"), ("slurm.md", "slurm"), ("wandb.md", "workspace")} <= named
    assert {(name, extra) for name, extra in named if extra not in metadata["extras_require"]} == set()


def test_the_package_says_who_made_it_and_where_the_paper_is(metadata):
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'name: "{metadata["author"]}"' in citation
    assert metadata["project_urls"]["Paper"].removeprefix("https://doi.org/") in citation
    assert f"version: {metadata['version']}\n" in citation


def test_every_folder_of_data_is_in_the_wheel(metadata):
    files = [path for folder in ("configs", "patches") for path in (ROOT / folder).rglob("*.yaml")]
    patterns = {name.rpartition(".")[2]: patterns for name, patterns in metadata["package_data"].items()}
    for path in files:
        folder, *inside = path.relative_to(ROOT).parts
        assert any(Path(*inside).match(pattern) for pattern in patterns[folder]), path
