"""What a checkout of OpenFedLLM is, told from its files alone: nothing of it is imported or run."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.arguments import AttachedArguments
from fedbias_plugin.hosts.openfedllm.lines import parse
from fedbias_plugin.hosts.openfedllm.requirements import Requirements

SETTINGS = "config.py"
PACKAGES = ("utils", "federated_learning")
"""The host's packages that hold the functions which the plugin replaces."""
PREFIX = "fedbias_"
"""In front of a flag of the plugin where the host has one of that name."""


@dataclass(frozen=True)
class Unfit:
    """Why a script cannot be attached, ``script`` being empty where it is the whole checkout."""

    script: str
    reason: str


@dataclass
class HostCode:
    """The code of a checkout.

    Attributes:
        folder: the checkout.
        requirements: what is looked for.
        broken: file -> why Python cannot read it.
    """

    folder: Path
    requirements: Requirements
    broken: dict[str, str] = field(default_factory=dict)

    @cached_property
    def scripts(self) -> dict[str, ast.Module]:
        """The entry scripts that are there, by name."""
        found = {name: self._tree(self.folder / name) for name in self.requirements.scripts}
        return {name: tree for name, tree in found.items() if tree is not None}

    @cached_property
    def settings(self) -> ast.Module:
        """``config.py``, empty where there is none."""
        return self._tree(self.folder / SETTINGS) or ast.parse("")

    @cached_property
    def modules(self) -> list[ast.Module]:
        """The modules of the host's packages."""
        paths = [path for name in PACKAGES for path in sorted((self.folder / name).glob("*.py"))]
        return [tree for path in paths if (tree := self._tree(path)) is not None]

    @cached_property
    def flags(self) -> set[str]:
        """The host's own flags: the fields of the dataclasses in ``config.py``."""
        classes = [node for node in ast.walk(self.settings) if isinstance(node, ast.ClassDef)]
        lines = [node for made in classes for node in made.body if isinstance(node, ast.AnnAssign)]
        return {node.target.id for node in lines if isinstance(node.target, ast.Name)}

    @cached_property
    def family(self) -> str:
        """``"OpenFedLLM"`` or ``"FedLLM-Bench"``, whose data come split by client."""
        names = {name for tree in self.scripts.values() for name in _names_used(tree)}
        return "FedLLM-Bench" if "get_fed_datasets" in names else "OpenFedLLM"

    def unfit(self) -> list[Unfit]:
        """Why the plugin cannot be attached to the checkout, or to one of its scripts."""
        problems = []
        if not any(name == "HfArgumentParser" for name in _names_used(self.settings)):
            problems.append(Unfit("", f"{SETTINGS} makes no HfArgumentParser (Hydra?), so there is no place for flags"))
        elif missing := [name for name in self.requirements.flags if name not in self.flags]:
            problems.append(Unfit("", f"{SETTINGS} has no flag --{', --'.join(missing)}, which the plugin reads"))
        for script in self.scripts:
            problems += [Unfit(script, reason) for reason in self._unfit_script(script)]
        return problems

    def clashes(self) -> list[str]:
        """Flags that both the host and the plugin have."""
        return sorted(self.flags & {spec.name for spec in fields(AttachedArguments)})

    def missing_packages(self) -> list[str]:
        """What the scripts and all they import from the checkout want at once, and this Python does not have."""
        todo = [self.folder / name for name in (*self.scripts, SETTINGS, *(f"{name}/__init__.py" for name in PACKAGES))]
        seen: set[Path] = set()
        wanted: set[str] = set()
        while todo:
            path = todo.pop()
            tree = None if path in seen else self._tree(path)
            seen.add(path)
            for module, level in _imported(tree) if tree is not None else ():
                base = path.parents[level - 1] if level else self.folder
                files = [base / f"{module.replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
                found = [file for file in files if file.is_file()]
                todo += found
                if not found and not level and not (self.folder / module.partition(".")[0]).is_dir():
                    wanted.add(module.partition(".")[0])
        return sorted(name for name in wanted - set(sys.stdlib_module_names) if not _is_installed(name))

    def loops_in_functions(self) -> list[str]:
        """Scripts whose rounds run inside a function, where a resumed run cannot reach their variables."""
        return [
            script
            for script, tree in self.scripts.items()
            if not any(name == "global_aggregate" for node in tree.body for name in _names_used_outside_functions(node))
        ]

    def _unfit_script(self, script: str) -> Iterator[str]:
        tree, needs = self.scripts[script], self.requirements.scripts[script]
        used = set(_names_used(tree))
        lacking = [" or ".join(names) for names in needs if used.isdisjoint(names)]
        if lacking:
            yield (
                f"it uses no {', no '.join(lacking)}; the plugin works by replacing these functions of OpenFedLLM, and "
                "would do nothing there and say nothing"
            )
        for number, name in _names_bound(tree):
            if name in self.requirements.functions:
                yield f"line {number} gives {name} another meaning than the host's {' and '.join(PACKAGES)} do"
        for name in sorted(used & self.requirements.functions.keys()):
            signatures = [found for module in self.modules for found in _parameters(module, name)]
            lacks = [set(self.requirements.functions[name]) - found for found in signatures if found is not None]
            if lacks and len(lacks) == len(signatures) and all(lacks):
                yield f"{name} of this host has no parameter {', '.join(sorted(lacks[0]))}, which the plugin reads"

    def _tree(self, path: Path) -> ast.Module | None:
        if not path.is_file():
            return None
        try:
            return parse(path.read_bytes())
        except SyntaxError as error:
            self.broken[path.name] = f"line {error.lineno}: {error.msg}" if error.lineno else str(error.msg)
        except OSError as error:
            self.broken[path.name] = error.strerror or str(error)
        return None


def names_used(script: Path) -> set[str]:
    """The names that a script reads; those of OpenFedLLM's functions among them say what it does.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return set(_names_used(parse(script.read_bytes())))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{script} cannot be read: {error}") from error


def origin(folder: Path) -> str:
    """Where a checkout came from and its commit, as far as its ``.git`` says: ``"rui-ye/OpenFedLLM at 14c6af2"``."""
    git = folder / ".git"
    try:
        address = re.search(r"url = (\S+)", (git / "config").read_text(errors="replace"))
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            packed = (git / "packed-refs").read_text() if (git / "packed-refs").exists() else ""
            found = re.search(rf"^(\w+) {re.escape(name)}$", packed, re.MULTILINE)
            head = (git / name).read_text().strip() if (git / name).exists() else (found.group(1) if found else "")
    except OSError:
        return "no git checkout"
    where = "/".join(re.split(r"[/:]", address.group(1).removesuffix(".git"))[-2:]) if address else "no remote"
    return f"{where} at {head[:7] or 'no commit'}"


def _names_bound(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of what a script makes itself, or takes from other modules than the host's packages."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in PACKAGES:
            yield from ((node.lineno, alias.asname or alias.name) for alias in node.names)


def _names_used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id


def _names_used_outside_functions(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if isinstance(node, ast.Name):
            yield node.id
        for part in ast.iter_child_nodes(node):
            yield from _names_used_outside_functions(part)


def _parameters(module: ast.Module, name: str) -> Iterator[set[str] | None]:
    """The parameters of every function ``name`` of a module; None for one that takes whatever comes."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            spec = node.args
            takes_all = spec.vararg is not None or spec.kwarg is not None
            yield None if takes_all else {part.arg for part in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)}


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and level of the modules that are imported whenever the file is; the level counts the leading dots."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "__init__", node.level


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
