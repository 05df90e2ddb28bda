"""The line of ``fedbias patch`` into the scripts of an OpenFedLLM checkout, and out again.

Everything is computed and checked first (:func:`plan_patch`, :func:`plan_unpatch`); only :meth:`Plan.write` writes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import write_bytes_atomic
from fedbias_plugin.hosts.openfedllm.inspection import PREFIX, SETTINGS, HostCode, Requirements
from fedbias_plugin.hosts.openfedllm.lines import with_line, without_plugin

CLONE = "git clone https://github.com/rui-ye/OpenFedLLM"
NO_CHECKOUT = f"is no OpenFedLLM checkout ({CLONE})"
MISSING = "cannot run with this Python, which lacks modules that this host imports"
IMPORTS_CONFIG = re.compile(rb"^(from config import|import config\b)", re.MULTILINE)


@dataclass(frozen=True)
class ScriptPlan:
    """One script.

    Attributes:
        path: the script.
        before, after: its bytes.
        lines: number (from 1) and text of the plugin's lines in ``after``; none where they are taken out.
        removed: of those that go.
    """

    path: Path
    before: bytes
    after: bytes
    lines: tuple[tuple[int, str], ...] = ()
    removed: tuple[tuple[int, str], ...] = ()

    @property
    def name(self) -> str:
        """The script's, without its folder."""
        return self.path.name

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return self.before != self.after

    @property
    def is_moved(self) -> bool:
        """Whether the line is there already, in another place."""
        return self.changes and [text for _, text in self.removed] == [text for _, text in self.lines]

    def put_back(self) -> bool:
        """Write the old bytes again where they are not there any more; whether that worked."""
        try:
            if self.path.read_bytes() != self.before:
                write_bytes_atomic(self.path, self.before, keeps_owner=True)
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class Plan:
    """What is to be done in a checkout.

    Attributes:
        folder: the checkout.
        scripts: one entry a script that gets the line or loses it.
        notes: what the user should know before the first run.
        family: as which the checkout was recognised; empty when lines are taken out.
    """

    folder: Path
    scripts: tuple[ScriptPlan, ...]
    notes: tuple[str, ...] = ()
    family: str = ""

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return any(script.changes for script in self.scripts)

    def write(self) -> None:
        """Replace the scripts that change, each whole or not at all; when one fails, put back those written before.

        Raises:
            UserError: a file could not be written; the message names it, and every file that could not be put back.
        """
        written: list[ScriptPlan] = []
        try:
            for script in self.scripts:
                if script.changes:
                    written.append(script)
                    write_bytes_atomic(script.path, script.after, keeps_owner=True)
        except BaseException as error:
            stuck = [str(script.path) for script in written if not script.put_back()]
            if not isinstance(error, OSError):
                raise
            outcome = f"these are changed all the same: {', '.join(stuck)}" if stuck else "every file is as it was"
            raise UserError(f"{written[-1].path} could not be written: {error.strerror or error}; {outcome}") from error


def plan_patch(folder: str | Path) -> Plan:
    """What ``fedbias patch`` has to do in ``folder``; nothing is written.

    A script that lacks what the plugin needs is left out, with a note; without any script left the checkout is refused.

    Raises:
        UserError: it cannot be patched; the message names every file and reason.
    """
    folder, requirements = Path(folder), Requirements.load()
    names = requirements.scripts
    files = _read_checkout(folder, (SETTINGS, *names))
    if files.keys().isdisjoint(names):
        raise UserError(f"{folder} {NO_CHECKOUT}: it holds {SETTINGS}, but neither {' nor '.join(names)}")
    if SETTINGS not in files:
        raise UserError(
            f"{folder / SETTINGS} is missing: the host's flags are read from it. Restore it: git checkout {SETTINGS}, "
            f"or start from a whole checkout: {CLONE}"
        )
    code = HostCode(folder, requirements)
    unfit = code.unfit()
    whole = unfit.pop("", [])
    bad = {script: reasons[0] for script, reasons in sorted(unfit.items())}
    problems = [f"{name}: Python cannot read it as it is: {why}" for name, why in code.broken.items() if name in files]
    problems += whole
    if not problems and bad.keys() >= code.scripts.keys():
        problems += [f"{script}: {reason}" for script, reason in bad.items()]
    _refuse("patched", folder, problems, "The same experiment without a checkout: fedbias run.")
    plans = [_patched(folder / name, files[name], requirements.line) for name in code.scripts if name not in bad]
    # What an earlier version added elsewhere goes; copies of a patched script keep their line.
    plans += [plan for plan in _unpatched(folder, only_old=True) if plan.name not in code.scripts]
    plans += [plan for plan in _unpatched(folder) if plan.name in bad]
    _refuse("patched", folder, _check_writable([plan.path for plan in plans if plan.changes]))
    return Plan(folder, tuple(plans), tuple(_notes(code, bad)), code.family)


def plan_unpatch(folder: str | Path) -> Plan:
    """What ``fedbias unpatch`` has to do in ``folder``: take out all that any version added; nothing is written.

    Raises:
        UserError: a line cannot be taken out by itself, or a file cannot be written; the message names the lines.
    """
    folder = Path(folder)
    _read_checkout(folder, (SETTINGS, *Requirements.load().scripts))
    plans = _unpatched(folder)
    _refuse("unpatched", folder, _check_writable([plan.path for plan in plans]))
    return Plan(folder, tuple(plans))


def _read_checkout(folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """The bytes of every script of ``names`` that ``folder`` holds.

    Raises:
        UserError: no such folder, none of the scripts in it, or a script that is a link or cannot be read.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give that of an OpenFedLLM checkout ({CLONE})")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder of an OpenFedLLM checkout that holds {', '.join(names)}")
    scripts = {}
    for name in names:
        path = folder / name
        if path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link to {os.readlink(path)}: the change would reach beyond this checkout. "
                "Give the checkout that holds the file itself, or put a copy in the place of the link"
            )
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; an OpenFedLLM checkout has a script of that name")
        if path.exists():
            try:
                scripts[name] = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not scripts:
        raise UserError(f"{folder} {NO_CHECKOUT}: it holds none of {', '.join(names)}.{_nearby(folder, names)}")
    return scripts


def _check_writable(paths: Sequence[Path]) -> list[str]:
    """What forbids to replace the files: their permissions, or their folder's. Root is held to them as well."""
    problems = []
    for path in (*paths, *sorted({path.parent for path in paths})):
        name, access = (f"the folder {path}", os.W_OK | os.X_OK) if path.is_dir() else (path.name, os.W_OK)
        if not path.stat().st_mode & stat.S_IWUSR or not os.access(path, access):
            problems.append(f"{name} is read-only; allow writing: chmod u+w {path}")
    return problems


def _nearby(folder: Path, names: Collection[str]) -> str:
    """A pointer to a checkout one level up or down, where exactly one is there."""
    try:
        around = [path for path in (folder.resolve().parent, *folder.iterdir()) if path.is_dir()]
        near = [path for path in around if all((path / name).is_file() for name in names)]
    except OSError:
        return ""
    return f" Did you mean {near[0]}?" if len(near) == 1 else ""


def _refuse(what: str, folder: Path, problems: Sequence[str], advice: str = "") -> None:
    if problems:
        lines = [f"{folder} cannot be {what}; nothing was changed.", *problems, *([advice] if advice else [])]
        raise UserError("\n  ".join(lines))


def _patched(path: Path, data: bytes, line: str) -> ScriptPlan:
    """The script with the line, once, and without what an earlier version added."""
    try:
        plain, removed = without_plugin(data)
        after = with_line(plain, line)
        lines = without_plugin(after)[1]
    except SyntaxError as error:
        raise UserError(f"{path.name}: line {error.lineno or '?'}: {error.msg}. Nothing was changed.") from None
    if lines == removed:
        return ScriptPlan(path, data, data, tuple(lines))
    return ScriptPlan(path, data, after, tuple(lines), tuple(removed))


def _unpatched(folder: Path, *, only_old: bool = False) -> list[ScriptPlan]:
    """Every script of the folder that holds something of the plugin, or of an earlier version of it, without it."""
    plans, problems = [], []
    for path in sorted(folder.glob("*.py")):
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        try:
            after, removed = without_plugin(data, only_old=only_old)
        except SyntaxError as error:
            problems.append(f"{path.name}: {error.msg}")
            continue
        if removed:
            plans.append(ScriptPlan(path, data, after, removed=tuple(removed)))
    _refuse("unpatched", folder, problems)
    return plans


def _notes(code: HostCode, bad: dict[str, str]) -> list[str]:
    """What the user should know before the first run; ``bad``: script that is left out -> why."""
    known = (SETTINGS, *code.requirements.scripts)
    notes = [f"{name}: not in this checkout" for name in code.requirements.scripts if name not in code.scripts]
    notes += [f"{name}: not patched: {reason}" for name, reason in bad.items()]
    others = [path for path in sorted(code.folder.glob("*.py")) if path.is_file() and os.access(path, os.R_OK)]
    others = [path for path in others if path.name not in known and IMPORTS_CONFIG.search(path.read_bytes())]
    if others:
        notes.append(f"not patched, and without the plugin's flags: {', '.join(path.name for path in others)}")
    if code.clashes:
        ours = ", ".join(f"--{PREFIX}{name}" for name in code.clashes)
        notes.append(f"this host has --{', --'.join(code.clashes)} of its own: the plugin's is {ours} here")
    missing = code.missing_packages()
    if missing:
        notes.append(f"{MISSING}: {', '.join(missing)}")
    inside = [name for name in code.loops_in_functions() if name not in bad]
    if inside:
        notes.append(f"{', '.join(inside)}: its rounds run in a function, so that a run cannot be resumed")
    return notes
