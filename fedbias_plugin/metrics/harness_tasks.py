"""Tasks of lm-evaluation-harness: read, asked of a model, and aggregated, each by the harness's own objects.

Its names are imported in the functions: lm-eval is an optional package.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.harness_files import check_tasks, load_tasks, quiet, require_harness, said

FEWSHOT_SEED = 1234
"""Which examples a prompt shows, and what sampling draws; the default of the harness's command."""
BOOTSTRAP = 1000
"""Draws for the standard error of measures that have no formula for one; the harness's command draws 100,000."""
Raw = dict[tuple[str, str], Any]
"""(measure, filter) -> what an item gives, to be aggregated."""


@dataclass(frozen=True)
class Item:
    """A document of a task: what is asked of the model, and a digest of all that."""

    id: str
    task: str
    doc: Any
    instances: Sequence[Any]
    digest: str


@dataclass(frozen=True)
class Tasks:
    """One task, or those of one group.

    Attributes:
        name: of the task or group.
        tasks, groups: by name, the harness's own objects.
        items: every document, task after task.
    """

    name: str
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    items: Sequence[Item] = field(repr=False)


@dataclass(frozen=True)
class Found:
    """What the harness makes of some items.

    Attributes:
        numbers: measure -> (value, standard error); None where the harness has none. The first is the main one.
        by_task: of a group: task -> its (value, standard error, items) under the main measure.
        n: items.
        version: of the task, as its YAML says it.
        shots: examples in a prompt; None where the tasks of a group differ.
        higher_is_better: of the main measure; None where the task does not say it.
    """

    numbers: Mapping[str, tuple[float | None, float | None]]
    by_task: Mapping[str, tuple[float | None, float | None, int]]
    n: int
    version: str
    shots: int | None
    higher_is_better: bool | None


def read_tasks(given: str, shots: int | None, limit: int | None) -> Tasks:
    """The task, with its documents and prompts.

    Args:
        given: a name that the harness knows, or a YAML file.
        shots: examples in a prompt; None leaves the task's own number.
        limit: most documents of each task; None takes all.

    Raises:
        UserError: lm-eval is missing, there is no such task, its data cannot be loaded, or it has no number of its own.
    """
    require_harness()
    with quiet():
        loaded, name = load_tasks(given)
        tasks, groups = loaded["tasks"], loaded["groups"]
        check_tasks(given, name, tasks, groups)
        items: list[Item] = []
        for task_name, task in tasks.items():
            if shots is not None:
                task.set_config("num_fewshot", shots)
            elif task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(FEWSHOT_SEED)
            try:
                task.build_all_requests(limit=limit)
            except Exception as error:  # whatever a task's own functions raise
                raise UserError(f"harness:{given}: no prompts can be made of it ({said(error)}).") from error
            items += _items(task_name, task.instances)
    return Tasks(name, tasks, groups, items)


def _items(task: str, instances: Sequence[Any]) -> Iterator[Item]:
    of_doc: dict[int, list[Any]] = defaultdict(list)
    for instance in instances:
        of_doc[instance.doc_id].append(instance)
    for number, own in of_doc.items():
        own.sort(key=lambda instance: instance.idx)
        content = json.dumps([own[0].doc, [one.args for one in own]], sort_keys=True, default=str)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        yield Item(f"{task}/{number}", task, own[0].doc, own, digest)


def ask(tasks: Tasks, items: Sequence[Item], model: Any) -> list[Raw]:
    """What each item gives, by the harness's own filters and measures.

    Args:
        tasks: of the items.
        items: some of its items.
        model: a :class:`~fedbias_plugin.scoring.harness_model.HarnessModel`.
    """
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for instance in (instance for item in items for instance in item.instances):
        instance.resps, instance.filtered_resps = [], {}
        by_kind[instance.request_type] += [instance] * (instance.repeats or 1)
    for kind, requests in by_kind.items():
        for request, answer in zip(requests, getattr(model, kind)(requests, disable_tqdm=True), strict=True):
            request.resps.append(answer)
    for name, task in tasks.tasks.items():
        whole, chosen = task._instances, [one for item in items if item.task == name for one in item.instances]
        try:
            task._instances = chosen
            if chosen:
                task.apply_filters()
        finally:
            task._instances = whole
    found = []
    for item in items:
        raw: Raw = {}
        for key in item.instances[0].filtered_resps:
            answers = [instance.filtered_resps[key] for instance in item.instances]
            results = tasks.tasks[item.task].process_results(item.doc, answers)
            raw |= {(measure, key): value for measure, value in results.items()}
        found.append(raw)
    return found


def aggregate(tasks: Tasks, names: Sequence[str], raws: Sequence[Raw]) -> Found:
    """The harness's aggregation and standard errors of some items.

    Args:
        tasks: of the items.
        names: task of every item.
        raws: of :func:`ask`.
    """
    from lm_eval.evaluator_utils import _process_results

    made: dict[str, Any] = {
        name: {"task": tasks.tasks[name], "raw_metrics": defaultdict(list), "logged_samples": []}
        for name in tasks.tasks
        if name in set(names)
    }
    for name, raw in zip(names, raws, strict=True):
        for key, value in raw.items():
            made[name]["raw_metrics"][key].append(value)
    with quiet():
        whole = _process_results(made, dict(tasks.groups), BOOTSTRAP)._to_eval_results()
    results = whole["results"]
    numbers = _numbers(results[tasks.name], _order(tasks))
    main = next(iter(numbers), "")
    of_task = {name: _numbers(results[name], [])[main] for name in made if tasks.groups and _has(results[name], main)}
    shots, better = whole["n-shot"].get(tasks.name), whole["higher_is_better"].get(tasks.name, {})
    return Found(
        numbers,
        {name: (*pair, results[name]["sample_len"]) for name, pair in of_task.items()},
        len(raws),
        str(whole["versions"].get(tasks.name)),
        shots if isinstance(shots, int) else None,
        better.get(main.partition("@")[0]),
    )


def is_mean(tasks: Tasks, measure: str) -> bool:
    """Whether a measure of one task is the plain mean over its items."""
    from lm_eval.api.metrics import mean

    task = tasks.tasks.get(tasks.name)
    return task is not None and task.aggregation().get(measure) is mean


def _order(tasks: Tasks) -> list[str]:
    """Measures as the task lists them; as the harness gives them of a group."""
    return list(tasks.tasks[tasks.name].aggregation()) if tasks.name in tasks.tasks else []


def _numbers(found: Mapping[str, Any], order: Sequence[str]) -> dict[str, tuple[float | None, float | None]]:
    """``{"acc,none": 0.5, "acc_stderr,none": 0.1}`` -> ``{"acc": (0.5, 0.1)}``; another filter is ``acc@filter``."""
    pairs = [key.split(",", 1) for key in found if "," in key and not key.split(",")[0].endswith("_stderr")]
    pairs.sort(key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
    return {
        measure if key == "none" else f"{measure}@{key}": (
            _number(found[f"{measure},{key}"]),
            _number(found.get(f"{measure}_stderr,{key}")),
        )
        for measure, key in pairs
    }


def _has(found: Mapping[str, Any], name: str) -> bool:
    return name in _numbers(found, [])


def _number(value: Any) -> float | None:
    """None for what is no finite number, such as the harness's ``N/A``."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
