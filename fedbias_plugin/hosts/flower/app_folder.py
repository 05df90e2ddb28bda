"""The Flower app of the plugin as a folder, for ``flwr run`` and for people who know Flower."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbias_plugin import __version__
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import write_text_atomic
from fedbias_plugin.hosts.builtin.start import FLAGS
from fedbias_plugin.hosts.flower.arguments import RUN_CONFIG, FlowerArguments
from fedbias_plugin.options import shown_help

PACKAGE = "fedbias_app"
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = {name}
version = "1.0.0"
description = "Federated fine-tuning with the bias of every round, by fedbias_plugin {version}"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["fedbias_plugin[flower]"]

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.flwr.app]
publisher = "fedbias-plugin"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

# Every flag of `fedbias run`; "" stands for "not given". To change one for a run: flwr run . NAME -c "num_rounds=3"
[tool.flwr.app.config]
{config}
"""
MODULE = '"""The {name}App."""\n\nfrom fedbias_plugin.hosts.flower import {kind}_app\n\napp = {kind}_app.app\n'
README = """\
# {name}

A Flower app of fedbias_plugin {version}. Edit `[tool.flwr.app.config]` in `pyproject.toml`, or give values on the
command line; a text is quoted twice:

    flwr run . NAME --stream -c "aggregation='bama' num_rounds=3 output_dir='runs/bama'"

`NAME` is a SuperLink connection in Flower's `config.toml`. Files (`output_dir`, data sets, the model) are those of the
machine that reads them: the server's, and with `--node-config` a node's own.
"""


def make_app_folder(folder: Path, given: Mapping[str, Any]) -> None:
    """Write the app to ``folder``, which must not exist or be empty.

    Args:
        folder: made with its parents.
        given: flag -> value, written into the configuration; the other flags are left open.

    Raises:
        UserError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; give a new folder.")
    name = re.sub(r"[^a-z0-9-]+", "-", folder.absolute().name.lower()).strip("-") or "fedbias-app"
    lines = [f"{key} = {toml_value(given.get(key))}" for key in RUN_CONFIG]
    for cls in (FlowerArguments, *FLAGS):
        lines.append(f"\n# {(cls.__doc__ or cls.__name__).splitlines()[0]}")
        specs = dataclasses.fields(cls)
        lines += [f"{spec.name} = {toml_value(given.get(spec.name))}  # {help_of(spec)}" for spec in specs]
    config = "\n".join(lines)
    project = PROJECT.format(name=json.dumps(name), version=__version__, package=PACKAGE, config=config)
    (folder / PACKAGE).mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / "pyproject.toml", project)
    write_text_atomic(folder / "README.md", README.format(name=name, version=__version__))
    write_text_atomic(folder / PACKAGE / "__init__.py", f'"""{name}: a Flower app of fedbias_plugin."""\n')
    for kind in ("server", "client"):
        write_text_atomic(folder / PACKAGE / f"{kind}_app.py", MODULE.format(kind=kind, name=kind.capitalize()))


def help_of(spec: dataclasses.Field[Any]) -> str:
    """A flag's help in one line, with its default."""
    default = "" if spec.default is None else f" (default: {spec.default})"
    return " ".join(f"{shown_help(spec)}{default}".split())


def toml_value(value: Any) -> str:
    """A value of the run's configuration; all are texts, which the app reads as the command line's.

    >>> toml_value(None), toml_value(0.5), toml_value(["a", "b"])
    ('""', '"0.5"', '"a,b"')
    """
    if value is None:
        return '""'
    return json.dumps(",".join(map(str, value)) if isinstance(value, list) else str(value))
