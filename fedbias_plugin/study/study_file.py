"""A study file: its title and question, the tables it shows, and the comparisons that answer the question.

``configs/studies/paper.yaml`` is the paper's; ``docs/study.md`` says what stands in one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedbias_plugin.configs_folder import configs_folder
from fedbias_plugin.errors import UserError, did_you_mean, quoted
from fedbias_plugin.flags import read_yaml
from fedbias_plugin.known_flags import all_options
from fedbias_plugin.registry import names
from fedbias_plugin.study.published import Published, load_published
from fedbias_plugin.study.runs import planned_experiments

FILE = "study.yaml"
"""Of the folder of a sweep: its own study."""
FACTS = ("model", "training", "clients", "scenario", "aggregation", "weighting", "strength", "biased_share")
"""What arms are called by beside their flags."""
FACT_KEYS = ("vary", "from_", "to", "where", "within", "across", "may_differ", "rows", "columns", "needs", "x", "lines")
NOTHING = Published()
BYTES = "bytes"
"""What a figure may have for its ``x`` beside facts."""
DIRECTIONS = ("up", "down")
SCALES = ("bias", "score")
Wanted = Mapping[str, Any]
"""Fact of an arm -> the value, or the list of values, that it must have."""


@dataclass(frozen=True)
class Comparison:
    """Two arms that differ in what is varied alone, wherever the study has such two.

    Attributes:
        vary, may_differ: the settings in which the two may differ.
        from_, to: facts of the baseline and of the other arm; the file says ``from``.
        where: facts of both.
        within: facts that both have alike, by which the pairs are called.
        metric: names of metrics, or of numbers beside them (``gender_perplexity/l1_gap``).
        expect: ``up`` or ``down``, what the claim says of the difference; '' for none.
        scale: ``bias``: the more biased arm must stand above the ideal by more than the noise floor; ``score``: the
            difference alone counts.
        claim: what is claimed, in a sentence; '' for none.
        across: facts of which there must be two values each before the claim is said to hold across them.
        takes_back: id of the comparison of whose difference this one shows which share it takes back; '' for none.
    """

    id: str
    title: str
    vary: tuple[str, ...]
    from_: Wanted
    to: Wanted
    where: Wanted = dataclasses.field(default_factory=dict)
    within: tuple[str, ...] = ()
    metric: tuple[str, ...] = ("crows_pairs", "stereoset")
    expect: str = ""
    scale: str = "bias"
    claim: str = ""
    across: tuple[str, ...] = ()
    may_differ: tuple[str, ...] = ()
    takes_back: str = ""

    @property
    def varied(self) -> tuple[str, ...]:
        """The settings in which the two arms may differ."""
        return (*self.vary, *self.may_differ)


@dataclass(frozen=True)
class PivotTable:
    """Means over seeds by the facts of arms.

    Attributes:
        rows: facts by which rows are called; the first one groups them.
        measures: columns of ``Study.finals``.
        where: facts of the arms in it.
        columns: the fact that makes columns; '' for none.
        original: whether the untouched model has a row.
        needs: fact -> how many different values there must be before the table is shown.
        may_differ: further settings in which its arms may differ.
        paper: where the published cells are: ``table`` and ``path`` (facts, below the model) in ``published``,
            ``names`` (value of a fact -> its key there), ``where`` (facts of the arms that have one).
    """

    id: str
    title: str
    rows: tuple[str, ...]
    measures: tuple[str, ...]
    caption: str = ""
    where: Wanted = dataclasses.field(default_factory=dict)
    columns: str = ""
    original: bool = False
    needs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    may_differ: tuple[str, ...] = ()
    paper: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def axes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Facts by which rows, and columns, are called."""
        return self.rows, (self.columns,) if self.columns else ()


@dataclass(frozen=True)
class DoseFigure:
    """Metrics against ``x``, a fact of the arms that fit ``where``: a line for every value of the facts ``lines``.

    Against the ``x`` ``bytes``, those that were sent and received up to each round, it is a line an arm. ``metric``:
    names of metrics, or of numbers beside them; those with an ideal where there are none.
    """

    id: str
    title: str
    x: str
    lines: tuple[str, ...] = ()
    where: Wanted = dataclasses.field(default_factory=dict)
    metric: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyFile:
    """What a study asks and shows.

    Attributes:
        order: fact -> the order of its values; others follow by size or name.
        names: value of a fact -> how it is shown; and setting -> its name where labels of arms tell them apart by it.
        arms: what an arm is called -> its facts; others are called by their settings.
        published: the numbers of a paper that stand beside ours; in the file the name of theirs, from its own folder.
    """

    name: str
    title: str
    question: str = ""
    order: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    names: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    arms: Mapping[str, Wanted] = dataclasses.field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    tables: tuple[PivotTable, ...] = ()
    figures: tuple[DoseFigure, ...] = ()
    published: Published = NOTHING

    def check_names(self, facts: Iterable[str], metrics: Iterable[str]) -> None:
        """Refuse names that are misspelt, which would fit no arm in silence.

        Args:
            facts: those that these runs have beside the flags and :data:`FACTS`.
            metrics: those that they measured beside the ones that are known here.

        Raises:
            UserError: the entry and what was probably meant.
        """
        known_facts, known_metrics = {*facts, *FACTS, *all_options()}, {*metrics, *names("metric")}
        entries: tuple[Any, ...] = (*self.comparisons, *self.tables, *self.figures)
        for entry in (*entries, *(SimpleNamespace(id=label, where=where) for label, where in self.arms.items())):
            of_facts = [name for key in FACT_KEYS for name in _texts(getattr(entry, key, ()))]
            of_metrics = [name.partition("/")[0] for name in getattr(entry, "metric", ())]
            for given, known in ((of_facts, known_facts), (of_metrics, known_metrics)):
                for name in given:
                    if name not in known and (name, getattr(entry, "x", "")) != (BYTES, BYTES):
                        raise UserError(
                            f"study {self.name}, {entry.id}: unknown {quoted(name)}.{did_you_mean(name, known)}"
                        )

    def sort_key(self, names: Sequence[str], values: Sequence[Any]) -> list[tuple[int, float, str]]:
        """To sort the ``values`` of the facts ``names`` by."""
        return [placed(value, self.order.get(name, ())) for name, value in zip(names, values, strict=True)]


def _texts(value: str | Iterable[str]) -> list[str]:
    """Of a tuple, of the keys of a mapping, or a single one; '' is none."""
    return [value] * bool(value) if isinstance(value, str) else list(value)


def find_study_file(folders: Sequence[str | Path], given: str | None) -> Path:
    """The file that was ``given`` (a path, or the name of one of ours), else that of a folder, or of its sweep.

    A sweep's is ours whose name its experiments have, or begin with (``fm_paradox`` for ``fm_paradox_small``; the
    longest such name); the paper's where there is none, or where there are several.

    Raises:
        UserError: there is no such file or name.
    """
    ours = {path.stem: path for path in sorted((configs_folder() / "studies").glob("*.yaml"))}
    if given is not None:
        if Path(given).is_file() or given in ours:
            return ours.get(given, Path(given))
        known = ", ".join(ours)
        hint = did_you_mean(given, ours)
        raise UserError(f"--study {given}: there is no such file, and none of ours is called so ({known}).{hint}")
    own = [Path(folder) / FILE for folder in folders if (Path(folder) / FILE).is_file()]
    if own:
        return own[0]
    swept = {name for folder in folders for name in planned_experiments(folder)}
    fitting = {max((o for o in ours if f"{name}_".startswith(f"{o}_")), key=len, default="paper") for name in swept}
    return ours[fitting.pop() if len(fitting) == 1 else "paper"]


def load_study_file(path: Path) -> StudyFile:
    """Read and check a study file.

    Raises:
        UserError: no such file, no YAML, or a key or value that is not what it should be; the place is named.
    """
    where = f"study {path}"
    content = read_yaml(str(path), "study")
    parts = {"comparisons": Comparison, "tables": PivotTable, "figures": DoseFigure}
    for key, kind in parts.items():
        entries = content.get(key) or []
        if not isinstance(entries, list):
            raise UserError(f"{where}, {key}: must be a list; found {quoted(entries)}.")
        content[key] = tuple(_read(kind, entry, f"{where}, {key} {place}") for place, entry in enumerate(entries, 1))
    if published := content.pop("published", None):
        content["published"] = load_published(path.parent / str(published))
    found = _read(StudyFile, {"name": path.stem, **content}, where)
    ids = [one.id for key in parts for one in getattr(found, key)]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise UserError(f"{where}: the id {quoted(twice[0])} stands twice.")
    for label, wanted in found.arms.items():
        if not isinstance(wanted, dict) or not isinstance(label, str):
            raise UserError(f"{where}, arms: {quoted(label)} needs the facts of its arm, such as aggregation: plain.")
    for one in found.comparisons:
        if one.takes_back and one.takes_back not in ids:
            raise UserError(f"{where}, {one.id}: takes_back names no comparison.{did_you_mean(one.takes_back, ids)}")
    return found


def _read(kind: type[Any], content: Any, where: str) -> Any:
    """``kind`` from a mapping; a single value where a tuple is wanted is one of one."""
    specs = {spec.name.rstrip("_"): spec for spec in dataclasses.fields(kind)}
    if not isinstance(content, dict):
        raise UserError(f"{where}: must be a mapping with {', '.join(specs)}; found {quoted(content)}.")
    for name in content:
        if name not in specs:
            raise UserError(f"{where}: unknown key {quoted(name)}.{did_you_mean(name, specs)}")
    if kind is Comparison:
        content = _with_mappings(content, where)
    values = {}
    for name, spec in specs.items():
        if name not in content:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise UserError(f"{where}: {name} is missing.")
            continue
        values[spec.name] = _typed(content[name], str(spec.type), f"{where}, {name}")
    made = kind(**values)
    if kind is Comparison and made.claim and not made.expect:
        raise UserError(f"{where}: a claim says what to expect: {' or '.join(DIRECTIONS)}.")
    if kind is Comparison and (made.scale not in SCALES or made.expect not in ("", *DIRECTIONS)):
        raise UserError(f"{where}: expect is one of {', '.join(DIRECTIONS)}, and scale one of {', '.join(SCALES)}.")
    return made


def _with_mappings(content: dict[str, Any], where: str) -> dict[str, Any]:
    """``from`` and ``to`` as facts: ``plain`` under ``vary: aggregation`` is ``{aggregation: plain}``."""
    vary = content.get("vary")
    if not isinstance(vary, str | list) or "from" not in content or "to" not in content:
        raise UserError(f"{where}: needs vary, from and to, such as vary: aggregation, from: plain, to: bama.")
    names = [vary] if isinstance(vary, str) else vary
    sides = {
        side: content[side] if isinstance(content[side], dict) else {names[0]: content[side]} for side in ("from", "to")
    }
    return {"title": content.get("claim") or content.get("id"), **content, **sides}


def _typed(value: Any, wanted: str, where: str) -> Any:
    if wanted.startswith("tuple"):
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if wanted == "str" and isinstance(value, str):
        return " ".join(value.split())
    if wanted == "bool" and isinstance(value, bool):
        return value
    if (wanted.startswith(("Mapping", "Wanted")) and isinstance(value, dict)) or isinstance(value, Published):
        return value
    raise UserError(f"{where}: {quoted(value)} is not what belongs here.")


def placed(value: Any, order: Sequence[Any]) -> tuple[int, float, str]:
    """A key to sort the values of a fact by: in ``order``, then numbers by size, then texts by name."""
    if value in order:
        return order.index(value), 0, ""
    return len(order), value if isinstance(value, int | float) else 0, str(value)


def fits(facts: Mapping[str, Any], wanted: Wanted) -> bool:
    """Whether an arm has the facts ``wanted``.

    >>> fits({"scenario": "3B", "seed": 1}, {"scenario": ["3B", "3C"]})
    True
    """
    return all(facts.get(name) in (value if isinstance(value, list) else [value]) for name, value in wanted.items())
