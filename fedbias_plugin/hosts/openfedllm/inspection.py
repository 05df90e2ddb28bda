"""What a script of a checkout holds of the plugin already, and why it cannot be patched."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.patch_files import MARKER, Insertion, ScriptPatch
from fedbias_plugin.hosts.openfedllm.script import Code, Script


class Reading:
    """A script as it is, and without the plugin's lines.

    Raises:
        UserError: it is not Python, or a marked line is none that the plugin adds to this script.
    """

    def __init__(self, name: str, data: bytes, known: Collection[str]) -> None:
        self.name = name
        self.script = Script.of(data)
        self.ours = marked_lines(self.script)
        strange = [index for index in self.ours if plain_line(self.script, index) not in known]
        if strange:
            raise UserError("\n  ".join(altered(name, index) for index in strange))
        self.bare = self.script.without(self.ours)
        self._kept = [index for index in range(len(self.script.lines)) if index not in self.ours]
        self._kept.append(len(self.script.lines))
        try:
            Code(data)
            self.code = Code(self.bare.data)
        except SyntaxError as error:
            where = f"line {error.lineno}: " if error.lineno else ""
            raise UserError(f"{name}: {where}Python cannot read this script as it is: {error.msg}") from error

    def anchors(self, insertion: Insertion) -> list[int]:
        """The indices, in the bare script, of the lines that the anchor matches."""
        return self.code.find(self.bare, insertion.anchor) if insertion.anchor is not None else []

    def place(self, insertion: Insertion) -> int | None:
        """The index, in the bare script, of the line above which the insertion belongs; None without one anchor."""
        if insertion.anchor is None:
            return self.bare.first_statement()
        anchors = self.anchors(insertion)
        return anchors[0] + (insertion.where == "after") if len(anchors) == 1 else None

    def place_or_found(self, insertion: Insertion) -> int | None:
        """As :meth:`place`; for a line added by hand next to no anchor, the place it has."""
        place, found = self.place(insertion), self.found(insertion)
        return self.bare_place(found[0]) if place is None and found else place

    def found(self, insertion: Insertion) -> list[int]:
        """The indices, in the script as it is, of the insertion's line."""
        return [index for index in self.ours if plain_line(self.script, index) == insertion.line]

    def at(self, bare_index: int) -> int:
        """The index in the script as it is of a line of the bare one."""
        return self._kept[bare_index]

    def bare_place(self, index: int) -> int:
        """The place in the bare script of one of the plugin's lines."""
        return index - sum(other < index for other in self.ours)


def marked_lines(script: Script) -> list[int]:
    """The indices of the lines with the plugin's comment, exact or not."""
    return [index for index in range(len(script.lines)) if MARKER.encode() in script.text(index)]


def plain_line(script: Script, index: int) -> str:
    """A line without its end and indentation (somebody may have had to indent a line added by hand)."""
    return script.text(index).lstrip(b" \t").decode("ascii", "backslashreplace")


def altered(name: str, index: int) -> str:
    """The message about a line with the plugin's comment that the plugin did not write."""
    return (
        f"{name}: line {index + 1} has the comment {MARKER!r} but is no line that this version of the plugin adds to "
        f"{name} (edited by hand, or added by another version). Delete that line, or: git checkout {name}"
    )


def script_problems(reading: Reading, patch: ScriptPatch, folder: Path) -> list[str]:
    """Why a script cannot be patched."""
    problems = list(_half_patched(reading, patch, folder))
    problems += _anchor_problems(reading, patch)
    future = reading.code.future_import()
    if future is not None and any(insertion.where == "start" for insertion in patch.insertions):
        problems.append(
            f"{reading.name}: line {reading.at(future - 1) + 1}: nothing may stand above `from __future__ import`, but "
            "the plugin's line has to be the first statement. Remove this import, then patch again"
        )
    return problems + list(_idle_hooks(reading, patch))


def _anchor_problems(reading: Reading, patch: ScriptPatch) -> Iterator[str]:
    """Lines that are not there yet and whose place cannot be told."""
    for insertion in patch.insertions:
        if reading.place(insertion) is None and not reading.found(insertion):
            numbers = [str(reading.at(index) + 1) for index in reading.anchors(insertion)]
            what = f"lines {' and '.join(numbers)} match" if numbers else "no line matches"
            yield (
                f"{reading.name}: {what} {insertion.anchor} (exactly one line should). Add this line by hand, "
                f"{insertion.place}, then patch again for the rest:\n      {insertion.line}"
            )


def _half_patched(reading: Reading, patch: ScriptPatch, folder: Path) -> Iterator[str]:
    """Lines that are there without the others, twice, or not where they belong.

    A line whose place cannot be told was added by hand, as the message about its anchor says; the others may follow.
    """
    name, faults = reading.name, []
    placed = any(reading.found(insertion) and reading.place(insertion) is not None for insertion in patch.insertions)
    for insertion in patch.insertions:
        found, place = reading.found(insertion), reading.place(insertion)
        if not found and placed:
            faults.append(f"{name}: this line of the plugin is missing, others are there: {insertion.line}")
        if len(found) > 1:
            numbers = " and ".join(str(index + 1) for index in found)
            faults.append(f"{name}: lines {numbers} are the same line of the plugin: {insertion.line}")
        if len(found) == 1 and place is not None and reading.bare_place(found[0]) != place:
            faults.append(f"{name}: line {found[0] + 1} is in the wrong place; it belongs {insertion.place}")
    yield from faults
    if faults:
        yield f"{name}: take the plugin's lines out (fedbias unpatch {shlex.quote(str(folder))}), then patch again"


def _idle_hooks(reading: Reading, patch: ScriptPatch) -> Iterator[str]:
    """Names that the plugin replaces, but that the script does not use or gives another meaning afterwards."""
    unused = [name for name in patch.calls if name not in reading.code.names]
    if unused:
        yield (
            f"{reading.name}: uses no {', no '.join(unused)}. The plugin works by replacing these functions of "
            "OpenFedLLM; in this script it would do nothing and say nothing. Call them as OpenFedLLM's own script "
            "does (or, if you do not use this script, move it out of the checkout)"
        )
    places = [reading.place_or_found(insertion) for insertion in patch.insertions]
    if not patch.replaces or None in places:
        return
    for number, name in reading.code.bound_below(max(place for place in places if place is not None), patch.replaces):
        what = "names that the plugin replaces" if name == "*" else name
        yield (
            f"{reading.name}: line {reading.at(number - 1) + 1} gives {what} another meaning below the plugin's line, "
            "which would then do nothing. Move that line above `from federated_learning import *`"
        )
