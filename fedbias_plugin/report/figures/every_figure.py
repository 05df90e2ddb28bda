"""All figures of a report, in order."""

from __future__ import annotations

from collections.abc import Callable

from fedbias_plugin.report.figures.bias_against_loss import bias_against_loss
from fedbias_plugin.report.figures.bias_curves import crows_curves, stereoset_curves
from fedbias_plugin.report.figures.category_heatmap import category_heatmap
from fedbias_plugin.report.figures.client_weights import client_weights
from fedbias_plugin.report.figures.drawing import Figure, LeftOut
from fedbias_plugin.report.figures.participation import participation
from fedbias_plugin.report.figures.segregated_against_mixed import segregated_against_mixed
from fedbias_plugin.report.figures.time_and_memory import time_and_memory
from fedbias_plugin.report.study import Study

FIGURES: tuple[Callable[[Study], Figure | LeftOut], ...] = (
    crows_curves,
    stereoset_curves,
    client_weights,
    segregated_against_mixed,
    participation,
    bias_against_loss,
    category_heatmap,
    time_and_memory,
)


def draw_figures(study: Study) -> tuple[list[Figure], list[LeftOut]]:
    """The figures that the study has data for, and the others with the reason why they are left out."""
    made = [figure(study) for figure in FIGURES]
    return [one for one in made if isinstance(one, Figure)], [one for one in made if isinstance(one, LeftOut)]
