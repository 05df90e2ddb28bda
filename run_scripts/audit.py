"""Asks pip-audit for known vulnerabilities of the installed packages, where it is installed and its service answers.

A vulnerability is reported loudly, and fails only with AUDIT=1 in the environment (for the maintainers' CI): news of a
dependency must not break a stranger's tests. What cannot be asked is one line that says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

COMMAND = (
    *("-m", "pip_audit", "--local", "--skip-editable", "--format", "json"),
    *("--progress-spinner", "off", "--timeout", "10"),
)
LONGEST = 300.0


def main() -> int:
    """Print what was found; 1 when there is a vulnerability and ``AUDIT=1``, else 0."""
    if importlib.util.find_spec("pip_audit") is None:
        print("audit: SKIPPED, pip-audit is not installed (pip install pip-audit)")
        return 0
    try:
        done = subprocess.run([sys.executable, *COMMAND], capture_output=True, text=True, timeout=LONGEST)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print(f"audit: SKIPPED, no answer within {LONGEST:.0f} s")
        return 0
    except (ValueError, KeyError):  # no report: the service was not reached
        reason = (done.stderr.strip().splitlines() or ["no report"])[-1]
        print(f"audit: SKIPPED, pip-audit gave no report ({reason[:200]})")
        return 0
    print(*report(packages), sep="\n")
    return int(os.environ.get("AUDIT") == "1" and any(package.get("vulns") for package in packages))


def report(packages: list[dict[str, Any]]) -> list[str]:
    """Lines to print on pip-audit's ``dependencies``; one that the service does not know has a ``skip_reason``."""
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return ["audit: SKIPPED, the service knows none of the installed packages (no network, or a mirror without it)"]
    lines = []
    for package in asked:
        for found in package.get("vulns", []):
            fixed = ", ".join(found.get("fix_versions", [])) or "no version yet"
            lines.append(f"audit: VULNERABLE {package['name']} {package['version']}: {found['id']}, mended in {fixed}")
    left = f", {len(packages) - len(asked)} unknown to the service" if len(asked) < len(packages) else ""
    verdict = f"{len(lines)} known vulnerabilities" if lines else "no known vulnerability"
    return [*lines, f"audit: {verdict} in {len(asked)} packages{left}"]


if __name__ == "__main__":
    sys.exit(main())
