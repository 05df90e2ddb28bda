"""What a checkout of OpenFedLLM is, told from its files alone: nothing of it is imported or run."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import packaged_folder
from fedbias_plugin.hosts.openfedllm.arguments import AttachedArguments
from fedbias_plugin.hosts.openfedllm.lines import parse

SETTINGS = "config.py"
PACKAGES = ("utils", "federated_learning")
"""The host's packages that hold the functions which the plugin replaces."""
PREFIX = "fedbias_"
"""In front of a flag of the plugin where the host has one of that name."""
REQUIREMENTS = "openfedllm.yaml"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Requirements:
    """``patches/openfedllm.yaml``: the line of the plugin, and what it must find in a checkout.

    Attributes:
        line: the plugin's line.
        scripts: script -> the functions it must use, each a tuple of alternatives.
        functions: the host's function that the plugin replaces -> the parameters it reads.
        flags: the host's flags that the plugin reads.
    """

    line: str
    scripts: dict[str, list[tuple[str, ...]]]
    functions: dict[str, list[str]]
    flags: list[str]

    @classmethod
    def load(cls) -> Requirements:
        """Read the file: in the installed package, or at the top of the repository."""
        import yaml

        folder = packaged_folder(Path(__file__).resolve().parents[2], "patches", REQUIREMENTS)
        content = yaml.safe_load((folder / REQUIREMENTS).read_text(encoding="utf-8"))
        uses = {script: [tuple(name.split(" | ")) for name in names] for script, names in content["scripts"].items()}
        return cls(content["line"], uses, content["functions"], content["flags"])

    def check_parameters(self, name: str, host: Callable[..., Any]) -> None:
        """Refuse a host whose function of that name lacks a parameter that the plugin reads."""
        known = inspect.signature(host).parameters
        if any(spec.kind == inspect.Parameter.VAR_KEYWORD for spec in known.values()):
            return
        missing = [parameter for parameter in self.functions[name] if parameter not in known]
        if missing:
            raise UserError(
                f"{host.__module__}.{name} of this host has no parameter {', '.join(missing)}: it differs too much "
                "from OpenFedLLM's for the plugin. Run fedbias unpatch."
            )


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

    @property
    def clashes(self) -> list[str]:
        """Flags that both the host and the plugin have."""
        return sorted(self.flags & {spec.name for spec in fields(AttachedArguments)})

    @property
    def family(self) -> str:
        """``"OpenFedLLM"`` or ``"FedLLM-Bench"``, whose data come split by client."""
        is_bench = any("get_fed_datasets" in names_read(tree) for tree in self.scripts.values())
        return "FedLLM-Bench" if is_bench else "OpenFedLLM"

    def unfit(self) -> dict[str, list[str]]:
        """Script -> why the plugin cannot be attached to it; what is wrong with the whole checkout stands under ""."""
        needed, whole = self.requirements.flags, []
        if "HfArgumentParser" not in names_read(self.settings):
            whole.append(f"{SETTINGS} makes no HfArgumentParser (Hydra?), so there is no place for flags")
        elif missing := [name for name in needed if name not in self.flags]:
            whole.append(f"{SETTINGS} has no flag --{', --'.join(missing)}, which the plugin reads")
        reasons = {"": whole} | {script: list(self._unfit_script(script)) for script in self.scripts}
        return {script: found for script, found in reasons.items() if found}

    def _unfit_script(self, script: str) -> Iterator[str]:
        tree, replaced = self.scripts[script], self.requirements.functions
        used = names_read(tree)
        lacking = [" or ".join(names) for names in self.requirements.scripts[script] if used.isdisjoint(names)]
        if lacking:
            yield (
                f"it uses no {', no '.join(lacking)}; the plugin works by replacing these functions of OpenFedLLM, and "
                "would do nothing there and say nothing"
            )
        bound: list[tuple[int, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                bound.append((node.lineno, node.name))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.append((node.lineno, node.id))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in PACKAGES:
                bound += [(node.lineno, alias.asname or alias.name) for alias in node.names]
        for line, name in bound:
            if name in replaced:
                yield f"line {line} gives {name} another meaning than the host's {' and '.join(PACKAGES)} do"
        for name in sorted(used & replaced.keys()):
            made = [node for module in self.modules for node in module.body if isinstance(node, ast.FunctionDef)]
            lacks = [_lacking(node.args, replaced[name]) for node in made if node.name == name]
            if lacks and all(lacks):
                yield f"{name} of this host has no parameter {', '.join(lacks[0])}, which the plugin reads"

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
        return sorted(name for name in wanted - set(sys.stdlib_module_names) if importlib.util.find_spec(name) is None)

    def loops_in_functions(self) -> list[str]:
        """Scripts whose rounds run inside a function, where a resumed run cannot reach their variables."""
        found = []
        for script, tree in self.scripts.items():
            functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
            inside = {id(part) for function in functions for part in ast.walk(function)}
            if "global_aggregate" not in names_read(tree, without=inside):
                found.append(script)
        return found

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
    """:func:`names_read` of a script: those of OpenFedLLM's functions among them say what it does."""
    try:
        return names_read(parse(script.read_bytes()))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{script} cannot be read: {error}") from error


def names_read(tree: ast.AST, without: Collection[int] = ()) -> set[str]:
    """The names that a script reads, but in nodes whose ``id()`` is in ``without``."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in without]
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}


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


def _lacking(spec: ast.arguments, wanted: list[str]) -> list[str]:
    """Those of the ``wanted`` parameters that a function lacks; none where it takes whatever comes."""
    takes_all = spec.vararg is not None or spec.kwarg is not None
    known = {part.arg for part in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)}
    return [] if takes_all else sorted(set(wanted) - known)


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and level of the modules that are imported whenever the file is; the level counts the leading dots."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "__init__", node.level
