"""For mkdocs: files of the repository that docs/ links to are part of the site, and links reach them there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FOLDER = "repository"
"""Where they are on the site; their paths below it are those in the repository."""
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/RESULTS.md",
    "configs/wandb_sweep.yaml",
    "examples/custom_loop.ipynb",
    "examples/flower/Dockerfile",
    "examples/flower/compose.yaml",
    "examples/flower/fedbias-clientapps.service",
    "examples/flower/fedbias-supernode.service",
)
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)]*)?(\))")
ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):(<code>)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside of docs/."""
    for path in OUTSIDE:
        files.append(File.generated(config, f"{FOLDER}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are in the repository, turned to where their files are on the site."""
    here = page.file.src_uri
    in_repository = here.removeprefix(f"{FOLDER}/") if here.startswith(f"{FOLDER}/") else f"docs/{here}"

    def moved(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), target))
        there = f"{FOLDER}/{path}" if path in OUTSIDE else path.removeprefix("docs/") if path[:5] == "docs/" else None
        if "://" in target or there is None:
            return match.group(0)
        return f"{before}{posixpath.relpath(there, posixpath.dirname(here) or '.')}{anchor or ''}{after}"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings name classes as Sphinx does (a role before the name); the role is left out."""
    return ROLE.sub(r"\1", html)
