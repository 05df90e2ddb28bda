"""``patches/openfedllm.yaml``: the line of the plugin, and what it must find in a checkout."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import packaged_folder

FILE = "openfedllm.yaml"


@dataclass(frozen=True)
class Requirements:
    """What the file says.

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
        """Read the file: in the installed package, or at the top of the repository.

        Raises:
            UserError: it is in neither place.
        """
        import yaml

        folder = packaged_folder(Path(__file__).resolve().parents[2], "patches", FILE)
        content = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
        uses = {script: [tuple(name.split(" | ")) for name in names] for script, names in content["scripts"].items()}
        return cls(content["line"], uses, content["functions"], content["flags"])

    def check_parameters(self, name: str, host: Callable[..., Any]) -> None:
        """Refuse a host whose function of that name lacks a parameter that the plugin reads.

        Raises:
            UserError: naming the parameters.
        """
        known = inspect.signature(host).parameters
        if any(spec.kind == inspect.Parameter.VAR_KEYWORD for spec in known.values()):
            return
        missing = [parameter for parameter in self.functions[name] if parameter not in known]
        if missing:
            raise UserError(
                f"{host.__module__}.{name} of this host has no parameter {', '.join(missing)}: it differs too much "
                "from OpenFedLLM's for the plugin. Run fedbias unpatch."
            )
