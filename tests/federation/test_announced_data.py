"""What a run says of the data sets that it measures on."""

from __future__ import annotations

import logging
from pathlib import Path

from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.federation.inputs import announce_mini_data
from fedbias_plugin.metrics.crows_pairs import CrowsPairs
from fedbias_plugin.metrics.text_scores import Regard, Toxicity


class At:
    """A metric as far as its file goes."""

    def __init__(self, name, path, mini_is_invented=True):
        self.name, self.path, self.mini_is_invented = name, path, mini_is_invented


def test_a_metric_that_read_no_file_is_no_real_data_beside_bundled_ones():
    bundled = At(CrowsPairs.name, MINI_DATA / "crows_pairs.csv")
    assert announce_mini_data([bundled, Toxicity()], {}) == []
    real = announce_mini_data([bundled, At("winobias", Path("/data/winobias.csv"))], {})
    assert [said.split(":")[0] for said in real] == ["Two worlds are mixed"]
    assert "winobias from files" in real[0]


def test_short_lists_are_told_in_one_line(caplog):
    lists = [At(name, MINI_DATA / f"{name}.csv", mini_is_invented=False) for name in ("winobias", "professions")]
    with caplog.at_level(logging.INFO):
        assert announce_mini_data([*lists, Regard()], {}) == []
    assert [record.message for record in caplog.records] == [
        "Short lists of our own for winobias, professions; fedbias data list shows the published ones."
    ]
