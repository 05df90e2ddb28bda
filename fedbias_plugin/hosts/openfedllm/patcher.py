"""The line of ``fedbias patch`` into the scripts of an OpenFedLLM checkout, and out again.

Everything is computed and checked first (:func:`plan_patch`, :func:`plan_unpatch`); only :meth:`Plan.write` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.checkout import (
    CLONE,
    FileChange,
    check_writable,
    no_checkout,
    read_checkout,
    replace_files,
    scripts_that_import_config,
)
from fedbias_plugin.hosts.openfedllm.inspection import PREFIX, SETTINGS, HostCode
from fedbias_plugin.hosts.openfedllm.lines import with_line, without_plugin
from fedbias_plugin.hosts.openfedllm.requirements import Requirements

MISSING = "cannot run with this Python, which lacks modules that this host imports"


@dataclass(frozen=True)
class ScriptPlan:
    """One script: its bytes before and after, and the plugin's lines (numbered from 1) that come or go.

    ``is_entry``: the lines come; otherwise they go. ``before``: those that give way to the ones that come.
    """

    name: str
    change: FileChange
    lines: tuple[tuple[int, str], ...]
    is_entry: bool = False
    before: tuple[tuple[int, str], ...] = ()

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return self.change.before != self.change.after

    @property
    def is_moved(self) -> bool:
        """Whether the line is there already, in another place."""
        return [text for _, text in self.before] == [text for _, text in self.lines]


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
        """Replace the scripts that change, all or none.

        Raises:
            UserError: a file could not be written.
        """
        replace_files([script.change for script in self.scripts if script.changes])


def plan_patch(folder: str | Path) -> Plan:
    """What ``fedbias patch`` has to do in ``folder``; nothing is written.

    A script that lacks what the plugin needs is left out, with a note; without any script left the checkout is refused.

    Raises:
        UserError: it cannot be patched; the message names every file and reason.
    """
    folder, requirements = Path(folder), Requirements.load()
    files = read_checkout(folder, (SETTINGS, *requirements.scripts))
    _check_complete(folder, files, requirements)
    code = HostCode(folder, requirements)
    unfit = code.unfit()
    problems = [f"{name}: Python cannot read it as it is: {why}" for name, why in code.broken.items() if name in files]
    problems += [problem.reason for problem in unfit if not problem.script]
    bad = {problem.script: problem.reason for problem in reversed(unfit) if problem.script}
    if not problems and bad and set(bad) >= set(code.scripts):
        problems += [f"{script}: {reason}" for script, reason in sorted(bad.items())]
    _refuse("patched", folder, problems, "The same experiment without a checkout: fedbias run.")
    plans = []
    for name in code.scripts:
        if name not in bad:
            plans.append(_patched(folder / name, files[name], requirements.line))
    # What an earlier version added elsewhere goes; copies of a patched script keep their line.
    plans += [plan for plan in _unpatched(folder, only_old=True) if plan.name not in code.scripts]
    plans += [plan for plan in _unpatched(folder) if plan.name in bad]
    writable = check_writable([plan.change.path for plan in plans if plan.changes])
    _refuse("patched", folder, writable)
    return Plan(folder, tuple(plans), tuple(_notes(code, bad, folder)), code.family)


def plan_unpatch(folder: str | Path) -> Plan:
    """What ``fedbias unpatch`` has to do in ``folder``: take out all that any version added; nothing is written.

    Raises:
        UserError: a line cannot be taken out by itself, or a file cannot be written; the message names the lines.
    """
    folder, requirements = Path(folder), Requirements.load()
    read_checkout(folder, (SETTINGS, *requirements.scripts))
    plans = _unpatched(folder)
    _refuse("unpatched", folder, check_writable([plan.change.path for plan in plans]))
    return Plan(folder, tuple(plans))


def _check_complete(folder: Path, files: dict[str, bytes], requirements: Requirements) -> None:
    if not any(name in files for name in requirements.scripts):
        raise UserError(f"{no_checkout(folder)}: it holds {SETTINGS}, but neither {' nor '.join(requirements.scripts)}")
    if SETTINGS not in files:
        raise UserError(
            f"{folder / SETTINGS} is missing: the host's flags are read from it. Restore it: git checkout {SETTINGS}, "
            f"or start from a whole checkout: {CLONE}"
        )


def _refuse(what: str, folder: Path, problems: Sequence[str], advice: str = "") -> None:
    if problems:
        lines = [f"{folder} cannot be {what}; nothing was changed.", *problems, *([advice] if advice else [])]
        raise UserError("\n  ".join(lines))


def _patched(path: Path, data: bytes, line: str) -> ScriptPlan:
    """The script with the line, once, and without what an earlier version added."""
    try:
        after = with_line(without_plugin(data)[0], line)
        lines = without_plugin(after)[1]
    except SyntaxError as error:
        raise UserError(f"{path.name}: line {error.lineno or '?'}: {error.msg}. Nothing was changed.") from None
    before = without_plugin(data)[1]
    after = data if lines == before else after
    return ScriptPlan(path.name, FileChange(path, data, after), tuple(lines), is_entry=True, before=tuple(before))


def _unpatched(folder: Path, *, only_old: bool = False) -> list[ScriptPlan]:
    """Every script of the folder that holds something of the plugin, or of an earlier version of it, without it."""
    plans, problems = [], []
    for path in sorted(folder.glob("*.py")):
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        try:
            after, lines = without_plugin(data, only_old=only_old)
        except SyntaxError as error:
            problems.append(f"{path.name}: {error.msg}")
            continue
        if lines:
            plans.append(ScriptPlan(path.name, FileChange(path, data, after), tuple(lines)))
    _refuse("unpatched", folder, problems)
    return plans


def _notes(code: HostCode, bad: dict[str, str], folder: Path) -> list[str]:
    scripts = code.requirements.scripts
    notes = [f"{name}: not in this checkout" for name in scripts if name not in code.scripts]
    notes += [f"{name}: not patched: {reason}" for name, reason in sorted(bad.items())]
    others = scripts_that_import_config(folder, (SETTINGS, *scripts))
    if others:
        notes.append(f"not patched, and without the plugin's flags: {', '.join(others)}")
    clashes = code.clashes()
    if clashes:
        ours = ", ".join(f"--{PREFIX}{name}" for name in clashes)
        notes.append(f"this host has --{', --'.join(clashes)} of its own: the plugin's is {ours} here")
    missing = code.missing_packages()
    if missing:
        notes.append(f"{MISSING}: {', '.join(missing)}")
    inside = [name for name in code.loops_in_functions() if name not in bad]
    if inside:
        notes.append(f"{', '.join(inside)}: its rounds run in a function, so that a run cannot be resumed")
    return notes
