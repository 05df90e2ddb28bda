"""The lines of ``fedbias patch`` into the scripts of an OpenFedLLM checkout, and out again.

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
from fedbias_plugin.hosts.openfedllm.inspection import Reading, altered, marked_lines, plain_line, script_problems
from fedbias_plugin.hosts.openfedllm.patch_files import MARKER, Family, ScriptPatch, load_families, recognise
from fedbias_plugin.hosts.openfedllm.script import Code, Script

SETTINGS = "config.py"
ENTRIES = ("main_sft.py", "main_dpo.py")
SCRIPTS = (SETTINGS, *ENTRIES)


@dataclass(frozen=True)
class ScriptPlan:
    """One script: its bytes before and after, and the plugin's lines (numbered from 1) in the patched one."""

    name: str
    change: FileChange
    lines: tuple[tuple[int, str], ...]

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return self.change.before != self.change.after


@dataclass(frozen=True)
class Plan:
    """What is to be done in a checkout.

    Attributes:
        folder: the checkout.
        scripts: one entry a script that is there.
        absent: the names of the entry scripts that this fork does not have.
        idle: other scripts that import the patched config.py: they accept the plugin's flags and do nothing with them.
        family: as which the checkout was recognised; empty when lines are taken out.
    """

    folder: Path
    scripts: tuple[ScriptPlan, ...]
    absent: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
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

    Raises:
        UserError: it cannot be patched as a whole; the message names every file and reason.
    """
    folder = Path(folder)
    files = read_checkout(folder, SCRIPTS)
    _check_complete(folder, files)
    families = load_families()
    readings: dict[str, Reading] = {}
    problems: list[str] = []
    for name, data in files.items():
        try:
            readings[name] = Reading(name, data, _known_lines(families, name))
        except UserError as error:
            problems.append(str(error))
    _refuse("patched", folder, problems)
    names = {used for name in ENTRIES if name in readings for used in readings[name].code.names}
    family = recognise(families, names)
    for name, reading in readings.items():
        problems += script_problems(reading, family.scripts[name], folder)
    _refuse("patched", folder, problems)
    plans = [_patched(reading, family.scripts[name], folder) for name, reading in readings.items()]
    problems = _parse_problems(plans)
    problems += check_writable([plan.change.path for plan in plans if plan.changes])
    _refuse("patched", folder, problems)
    absent = tuple(name for name in ENTRIES if name not in files)
    return Plan(folder, tuple(plans), absent, scripts_that_import_config(folder, SCRIPTS), family.name)


def plan_unpatch(folder: str | Path) -> Plan:
    """What ``fedbias unpatch`` has to do in ``folder``: take out exactly the plugin's lines; nothing is written.

    Raises:
        UserError: a marked line is not one that a version of the plugin writes, or a file cannot be written.
    """
    folder = Path(folder)
    families = load_families()
    plans: list[ScriptPlan] = []
    problems: list[str] = []
    for name, data in read_checkout(folder, SCRIPTS).items():
        script = Script.of(data)
        ours, known = marked_lines(script), _known_lines(families, name)
        problems += [altered(name, index) for index in ours if not _from_plugin(plain_line(script, index), known)]
        lines = tuple((index + 1, plain_line(script, index)) for index in ours)
        plans.append(ScriptPlan(name, FileChange(folder / name, data, script.without(ours).data), lines))
    problems += check_writable([plan.change.path for plan in plans if plan.changes])
    _refuse("unpatched", folder, problems)
    return Plan(folder, tuple(plans))


def _check_complete(folder: Path, files: dict[str, bytes]) -> None:
    if not any(name in files for name in ENTRIES):
        raise UserError(f"{no_checkout(folder)}: it holds {SETTINGS}, but neither {' nor '.join(ENTRIES)}")
    if SETTINGS not in files:
        raise UserError(
            f"{folder / SETTINGS} is missing: the plugin's flags are added there. Restore it: git checkout {SETTINGS}, "
            f"or start from a whole checkout: {CLONE}"
        )


def _refuse(what: str, folder: Path, problems: Sequence[str]) -> None:
    if problems:
        raise UserError("\n  ".join([f"{folder} cannot be {what}; nothing was changed.", *problems]))


def _known_lines(families: Sequence[Family], name: str) -> set[str]:
    """Every line that the plugin may have added to a script."""
    return {insertion.line for family in families for insertion in family.scripts[name].insertions}


def _from_plugin(line: str, known: set[str]) -> bool:
    """Whether a marked line is the plugin's, of this version or of another."""
    return line in known or (
        line.startswith(("import fedbias_plugin.", "from fedbias_plugin.")) and line.endswith(MARKER)
    )


def _patched(reading: Reading, patch: ScriptPatch, folder: Path) -> ScriptPlan:
    """The script with every line of the patch that it lacks."""
    missing = []
    for insertion in patch.insertions:
        place = reading.place(insertion)
        if place is not None and not reading.found(insertion):
            missing.append((reading.at(place), insertion.line))
    script = reading.script
    for index, line in sorted(missing, reverse=True):
        script = script.with_line(index, line.encode("ascii"))
    lines = tuple((index + 1, plain_line(script, index)) for index in marked_lines(script))
    return ScriptPlan(reading.name, FileChange(folder / reading.name, reading.script.data, script.data), lines)


def _parse_problems(plans: Sequence[ScriptPlan]) -> list[str]:
    """Scripts that would not be Python any more."""
    problems = []
    for plan in plans:
        try:
            Code(plan.change.after)
        except SyntaxError as error:
            problems.append(
                f"{plan.name}: with the plugin's lines, line {error.lineno} would not be Python: {error.msg}"
            )
    return problems
