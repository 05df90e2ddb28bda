"""``python -m fedbias_plugin.harness``: the ``lm_eval`` command, which then knows ``--model fedbias``.

lm-evaluation-harness 0.4 finds models in its own list alone: no entry point and no flag adds one.
"""

from __future__ import annotations

from fedbias_plugin.errors import UserError


def main() -> None:
    """Register the model, then be ``lm_eval``; its own errors and exit codes."""
    from fedbias_plugin.metrics.harness_files import require_harness

    try:
        require_harness()
    except UserError as error:
        raise SystemExit(str(error)) from None
    from lm_eval.__main__ import cli_evaluate

    from fedbias_plugin.scoring import harness_model  # noqa: F401 - registers itself

    cli_evaluate()


if __name__ == "__main__":
    main()
