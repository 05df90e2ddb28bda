"""All tables of a study, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable

from fedbias_plugin.report.claims import claims
from fedbias_plugin.report.paper import Paper
from fedbias_plugin.report.study import Study
from fedbias_plugin.report.table_model import Table, with_counts
from fedbias_plugin.report.table_paper import algorithms, table1, table1_scenarios, table2, table3
from fedbias_plugin.report.table_quality import cost, items, quality, warnings
from fedbias_plugin.report.table_studies import figure1, participation, strength

BUILDERS: tuple[Callable[[Study, Paper | None], Table | None], ...] = (
    *(table1, table1_scenarios, table2, table3, figure1, participation, algorithms, strength),
    *(claims, quality, items, cost, warnings),
)


def build_tables(study: Study, paper: Paper | None) -> list[Table]:
    """Every table that the study has runs for.

    Args:
        study: the runs.
        paper: the paper's own numbers, shown beside ours; None leaves them out.
    """
    return [with_counts(table) for build in BUILDERS if (table := build(study, paper)) is not None]
