"""Any task of lm-evaluation-harness as a metric: ``harness:TASK``, with the harness's own measures and standard errors.

Gao et al., "The Language Model Evaluation Harness" (https://github.com/EleutherAI/lm-evaluation-harness). Only the
log-likelihoods are this package's: one forward pass for the beginnings that texts share (docs/harness.md).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Block, Metric, Result, Source
from fedbias_plugin.metrics.formatting import interval, item_note, number, plain, with_interval
from fedbias_plugin.metrics.harness_files import harness_version, quiet, shown_task
from fedbias_plugin.metrics.harness_tasks import Item, Tasks, aggregate, ask, is_mean, read_tasks
from fedbias_plugin.options import option, split_list

if TYPE_CHECKING:
    from typing_extensions import Self

    from fedbias_plugin.scoring.scorer import SentenceScorer

Z95 = 1.959964
"""Standard errors on each side of a value in its 95% interval, as the harness's users read them."""


@dataclass
class HarnessScores:
    """What a model gives on some items.

    Attributes:
        ids: of the items, such as ``arc_easy/12``.
        values: shape (items,), of the measure that stands for the task; NaN where it is no mean over items.
    """

    ids: list[str]
    values: Any

    def __post_init__(self) -> None:
        self.items: list[Item] = []
        self.raws: list[Any] = []

    def subset(self, indices: Sequence[int]) -> HarnessScores:
        """Of the items at ``indices``."""
        return made_scores([self.items[i] for i in indices], [self.raws[i] for i in indices], self.values[indices])


def made_scores(items: Sequence[Item], raws: Sequence[Any], values: Any) -> HarnessScores:
    """Scores of items; what is no number stays in memory and is not stored with the run."""
    made = HarnessScores([item.id for item in items], values)
    made.items, made.raws = list(items), list(raws)
    return made


@dataclass(frozen=True)
class HarnessResult(Result):
    """A task's main measure, the first that it lists, in the harness's own unit.

    Attributes:
        measure: its name.
        higher_is_better: what the task says of it.
        definition: harness and version, task and version, measure, examples in a prompt, in one sentence.
        harness_version, task, task_version, shots: the same one by one.
        ids_hash: sha256 of the items, with their prompts and answers.
        tasks: of a group: task -> ``value``, ``n`` and ``ci95`` under that measure.
        numbers: every other measure, its ``_stderr`` and ``_ci95``; they stand beside the value in a block.
    """

    measure: str = ""
    higher_is_better: bool | None = None
    definition: str = ""
    harness_version: str = ""
    task: str = ""
    task_version: str = ""
    shots: int | None = None
    stderr: float | None = None
    ids_hash: str = ""
    tasks: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> Block:
        """The attributes, and ``numbers`` beside them."""
        block: Block = plain({key: value for key, value in vars(self).items() if key != "numbers"})
        return {**plain(self.numbers), **block}


@dataclass
class Harness(Metric):
    """A task of lm-evaluation-harness, under the measure that it lists first."""

    sha256: str = ""  # type: ignore[misc]
    found: Tasks | None = field(default=None, repr=False)
    harness_shots: int | None = option(
        None, "examples in a prompt of harness:TASK; without it the task's own number", at_least=0
    )
    harness_limit: int | None = option(None, "most documents of each harness:TASK; without it all", at_least=1)
    harness_probe_fraction: float = option(
        0.0,
        "share of the documents of harness:TASK on which every client's update is measured too, in every measured "
        "round; the global model's score is then of the others",
        at_least=0.0,
        at_most=0.9,
    )

    name = "harness"
    takes = "TASK"
    title = "lm-evaluation-harness"
    digits = 4
    of_runs = ("harness_probe_fraction",)
    given = ""

    @classmethod
    def of(cls, given: str) -> type[Self]:
        """The metric of one task: a name that the harness knows, or the path of a YAML file."""
        return _of(cls, given)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.of_clients = self.harness_probe_fraction > 0  # type: ignore[misc]
        self._encoding: tuple[Any, Any, dict[Any, Any]] | None = None

    @property
    def probe_fraction(self) -> float:
        """``--harness_probe_fraction``."""
        return self.harness_probe_fraction

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """Refuse two tasks that records would call the same."""
        chosen = [part for part in split_list(flags.get("bias_benchmarks") or "") if part.startswith("harness:")]
        same = [part for part in chosen if shown_task(part.partition(":")[2]) == shown_task(self.given)]
        if len(set(same)) > 1:
            raise UserError(f"{' and '.join(dict.fromkeys(same))} would have one name, {self.name}; rename a file.")

    def prepare(self, source: Source) -> None:
        """Read the task and make its prompts.

        Raises:
            UserError: lm-eval is missing, there is no such task, or its data cannot be loaded.
        """
        from fedbias_plugin.scoring.items import ids_hash

        self.found = read_tasks(self.given, self.harness_shots, self.harness_limit)
        self.sha256 = ids_hash(item.digest for item in self.found.items)

    @property
    def items(self) -> Sequence[Item]:
        """The documents, none before :meth:`prepare`."""
        return self.found.items if self.found else ()

    @property
    def text_count(self) -> int:
        """Requests of all documents."""
        return sum(len(item.instances) for item in self.items)

    @property
    def ids(self) -> Sequence[str]:
        """Such as ``arc_easy/12``, the number of the document."""
        return [item.id for item in self.items]

    @property
    def strata(self) -> Sequence[str]:
        """The task, of a group's."""
        return [item.task for item in self.items]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Item id and prompt with its continuation."""
        for item in self.items:
            for instance in item.instances:
                yield item.id, "".join(part for part in instance.args if isinstance(part, str))

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> HarnessScores:
        """Ask the model; log-likelihoods by the scorer, generation by the harness."""
        import numpy as np
        import torch

        from fedbias_plugin.metrics.harness_tasks import FEWSHOT_SEED
        from fedbias_plugin.scoring.harness_model import HarnessModel, own_tokenizer
        from fedbias_plugin.scoring.inference import evaluating

        assert self.found is not None, "nothing is measured before it is prepared"
        items = self.items if indices is None else [self.items[index] for index in indices]
        if self._encoding is None or self._encoding[0] is not scorer.tokenizer:
            self._encoding = scorer.tokenizer, own_tokenizer(scorer.tokenizer), {}
        with quiet():
            model = HarnessModel.of(scorer, *self._encoding[1:])
        with evaluating(scorer.model):
            torch.manual_seed(FEWSHOT_SEED)  # within `evaluating`, which puts the random states back
            raws = ask(self.found, items, model)
        main = next(iter(aggregate(self.found, [item.task for item in items], raws).numbers))
        measure, _, key = main.partition("@")
        if is_mean(self.found, measure):
            values = [float(raw.get((measure, key or "none"), np.nan)) for raw in raws]
        else:
            values = [np.nan] * len(raws)
        return made_scores(items, raws, np.asarray(values))

    def result(self, scores: HarnessScores, *, seed: int) -> HarnessResult:
        """The harness's aggregation; the interval is 1.96 of its standard errors on each side."""
        from fedbias_plugin.scoring.items import ids_hash

        assert self.found is not None, "nothing is measured before it is prepared"
        whole = aggregate(self.found, [item.task for item in scores.items], scores.raws)
        (measure, (value, stderr)), *others = whole.numbers.items()
        numbers: Block = {}
        for name, (one, error) in others:
            numbers |= {name: one, f"{name}_stderr": error, f"{name}_ci95": _bounds(one, error)}
        shots = "" if whole.shots is None else f", {whole.shots} shots"
        known = "" if whole.version in ("N/A", "None") else f" version {whole.version}"
        task, version = f"{self.found.name}{known}", harness_version()
        return HarnessResult(
            value,
            whole.n,
            _bounds(value, stderr),
            measure=measure,
            higher_is_better=whole.higher_is_better,
            definition=f"{measure} of {task}{shots}, lm-evaluation-harness {version}",
            harness_version=version,
            task=self.found.name,
            task_version=whole.version,
            shots=whole.shots,
            stderr=stderr,
            ids_hash=ids_hash(item.digest for item in scores.items),
            tasks={
                name: {"value": one, "n": n, "ci95": _bounds(one, error)}
                for name, (one, error, n) in whole.by_task.items()
            },
            numbers=numbers,
        )

    @classmethod
    def outcomes(cls, scores: Mapping[str, Any]) -> tuple[Any, None] | None:
        """The value of every item, where the measure is their mean."""
        import numpy as np

        values = np.asarray(scores["values"], dtype=float)
        return (values, None) if np.isfinite(values).any() else None

    @classmethod
    def categories(cls, block: Block) -> Mapping[str, Block]:
        """By task, of a group."""
        return block.get("tasks") or {}

    @classmethod
    def line(cls, block: Block) -> str:
        """``arc_easy acc 0.4310 [0.4111, 0.4509] (n=2376)``."""
        shown = with_interval(block["value"], block.get("ci95"), cls.digits)
        return f"{cls.short} {block.get('measure', '')} {shown} ({item_note(block)})"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The value, and how it is defined."""
        items = "; ".join(filter(None, [item_note(block), block.get("definition")]))
        yield cls.title, number(block["value"], cls.digits), interval(block.get("ci95"), cls.digits), items

    @classmethod
    def table(cls, block: Block) -> Iterator[str]:
        """Every measure, and every task of a group."""
        yield f"{cls.title:<23}  {with_interval(block['value'], block.get('ci95'), 4):<26}  n={block['n']}"
        for name, own in block["tasks"].items():
            yield f"  {name:<21}  {with_interval(own['value'], own['ci95'], 4):<26}  n={own['n']}"
        for name in [key.removesuffix("_stderr") for key in block if key.endswith("_stderr")]:
            yield f"  {name:<21}  {with_interval(block[name], block[f'{name}_ci95'], 4)}"
        yield f"  {block['definition']}"


@functools.cache
def _of(cls: type[Any], given: str) -> Any:
    """Each class once, as states and tables compare them."""
    task = shown_task(given)
    about = {"given": given, "name": f"harness:{task}", "title": f"{task} (harness)", "short": task}
    return type("HarnessTask", (cls,), about | {"__doc__": cls.__doc__, "__module__": cls.__module__})


def _bounds(value: float | None, stderr: float | None) -> tuple[float, float] | None:
    return None if value is None or stderr is None else (value - Z95 * stderr, value + Z95 * stderr)
