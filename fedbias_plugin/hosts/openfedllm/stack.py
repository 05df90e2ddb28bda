"""Which libraries this Python has: those OpenFedLLM pins, or current ones. Nothing of them is imported."""

from __future__ import annotations

from fedbias_plugin.errors import UserError
from fedbias_plugin.versions import installed_version, version_numbers

INSTALL = 'in the folder of fedbias_plugin: pip install -c constraints.txt -e ".[openfedllm]"'
TESTED = {
    "pinned": {"trl": "0.7.2", "transformers": "4.31"},
    "current": {"trl": "1.16", "transformers": "5.23"},
}
"""First numbers of the versions that the tests run with."""
WORKING = """Known to work together:
  trl 0.7.2 with transformers 4.31.0 (constraints-openfedllm-pinned.txt)
  trl 1.16 with transformers 5.23 (constraints.txt)
Choose one, for example: pip install "trl==1.16.*" "transformers==5.23.*" -c constraints.txt"""


def detect_stack() -> str:
    """``"pinned"`` or ``"current"``, from the versions of trl and transformers.

    pinned: 0.7.2 <= trl < 0.8 and 4.31 <= transformers < 4.37. current: trl >= 1.0 and transformers >= 5.

    Raises:
        UserError: one of the two is not installed, or they are not known to work together; the message gives the
            versions found, those that work, and the line that installs them.
    """
    versions = stack_versions()
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: not installed, but OpenFedLLM needs both trl and transformers: {INSTALL}"
        )
    trl, transformers = (version_numbers(version) for version in versions.values() if version is not None)
    if (0, 7, 2) <= trl < (0, 8) and (4, 31) <= transformers < (4, 37):
        return "pinned"
    if trl >= (1,) and transformers >= (5,):
        return "current"
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    raise UserError(f"{found}: not known to work together.\n{WORKING}")


def untested(stack: str) -> str:
    """``"trl 1.17.0"``: what is installed in other versions than the tests of ``stack`` run with; mostly nothing."""
    return ", ".join(
        f"{name} {version}"
        for name, version in stack_versions().items()
        if version is not None and not f"{version}.".startswith(f"{TESTED[stack][name]}.")
    )


def stack_versions() -> dict[str, str | None]:
    """The installed versions of trl and transformers, None for one that is missing."""
    return {name: installed_version(name) for name in ("trl", "transformers")}
