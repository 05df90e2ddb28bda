"""Where tasks of lm-evaluation-harness are found and how they are loaded; what goes wrong there, said in a sentence."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError, did_you_mean, first_line, quoted

INSTALL = "pip install 'lm-eval>=0.4.13,<0.4.15'"
ALONE = "DISABLE_MULTIPROC"
"""What the harness's bootstrap asks the environment for."""


def require_harness() -> None:
    """Raise :class:`UserError` when lm-eval is missing, or a package that it needs."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"harness:TASK needs lm-evaluation-harness, which is not installed: {INSTALL}.")
    try:
        import lm_eval.evaluator_utils
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness cannot be used ({first_line(error)}): {INSTALL}.") from None


def harness_version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("lm_eval")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's progress bars and remarks, and without processes of its bootstrap beside our threads."""
    logger = logging.getLogger("lm_eval")
    level, before = logger.level, os.environ.get(ALONE)
    logger.setLevel(logging.ERROR)
    os.environ[ALONE] = before or "1"
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[ALONE]


def load_tasks(given: str) -> tuple[Any, str]:
    """What the harness's ``TaskManager.load`` gives of a name or a YAML file, and the name.

    Raises:
        UserError: there is no such task, or its data cannot be loaded.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    is_file = given.endswith((".yaml", ".yml"))
    path = Path(given).expanduser() if is_file else _file_of(given)
    try:
        if path is not None:
            if not path.is_file():
                raise UserError(f"harness:{given}: there is no such file.")
            config = load_yaml(path, resolve_func=False)
            if "group" in config:
                return _manager(path.parent, config).load(config["group"]), str(config["group"])
            return TaskManager(include_defaults=False).load(str(path)), str(config.get("task"))
        manager = TaskManager()
        if given not in manager.all_tasks:
            raise UserError(
                f"harness:{given}: lm-evaluation-harness {harness_version()} knows no such task; `lm_eval ls tasks` "
                f"lists them, and a YAML file of your own is named by its path.{did_you_mean(given, manager.all_tasks)}"
            )
        return manager.load(given), given
    except UserError:
        raise
    except Exception as error:  # of YAML, of datasets, of the hub, of a task's own code
        if _is_of_data(error):
            raise UserError(
                f"harness:{given}: its data cannot be loaded ({said(error)}). Without the hub, name a YAML file of "
                f"your own that has `include: {path or given}`, `dataset_path: json` and "
                "`dataset_kwargs: {data_files: {test: FILE.jsonl}}` (docs/harness.md)."
            ) from error
        raise UserError(f"harness:{given}: the task cannot be used ({said(error)}).") from error


def _file_of(name: str) -> Path | None:
    """Where the harness has a task or group of that name; reading its whole list of many thousands takes ten times as
    long. None where no file says so: a tag, or a name that a file makes."""
    import lm_eval.tasks

    says = re.compile(rf"^(task|group): *['\"]?{re.escape(name)}['\"]? *$", re.MULTILINE)
    files = sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"), key=Path.as_posix)
    return next((path for path in files if says.search(path.read_text(encoding="utf-8", errors="replace"))), None)


def _manager(folder: Path, group: Mapping[str, Any]) -> Any:
    """That knows what stands in the group's folder; and the harness's own tasks, many thousands, where it must."""
    from lm_eval.tasks import TaskManager

    near = TaskManager(include_path=str(folder), include_defaults=False)
    members = [one if isinstance(one, str) else one.get("task") or one.get("group") for one in group.get("task") or ()]
    return near if {*members, group["group"]} <= {*near.all_tasks} else TaskManager(include_path=str(folder))


def _is_of_data(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in ("datasets", "huggingface_hub", "requests", "httpx")


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def check_tasks(given: str, name: str, tasks: Mapping[str, Any], groups: Mapping[str, Any]) -> None:
    """Refuse what has no number of its own, and what must not be run."""
    shown = ", ".join(f"harness:{task}" for task in list(tasks)[:5])
    if name not in tasks and not (name in groups and groups[name].has_aggregation):
        what = "a group without aggregate_metric_list" if name in groups else "a tag, a list of tasks"
        raise UserError(f"harness:{given} is {what}, so that it has no number of its own; name its tasks: {shown}.")
    for task_name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(f"harness:{given}: {task_name} runs code that models write, or shows images; not here.")


def shown_task(given: str) -> str:
    """What records call a task: its name, or the name of its YAML file without the ending.

    Raises:
        UserError: it is neither.
    """
    path = Path(given)
    name = path.stem if path.suffix in (".yaml", ".yml") else given
    if "/" in name or not name.strip():
        raise UserError(f"harness:{quoted(given)}: give a task of lm-evaluation-harness, or the path of a YAML file.")
    return name
