"""``patches/openfedllm.yaml``: the line of the plugin, and what it must find in a checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedbias_plugin.files import packaged_folder

MARKER = "# added by fedbias patch"
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
