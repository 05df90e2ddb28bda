"""Figures draw the numbers of metrics.jsonl, tell arms apart without colour, and are the same bytes every time."""

from __future__ import annotations

import json
import re
import statistics
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure as Canvas

from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.drawing import (
    LOOKS,
    MOST_LINES,
    MOST_PANELS,
    Panel,
    figure,
    figure_png,
    looks,
    panel_svgs,
    short,
)
from fedbias_plugin.study.figures import draw_figures, line_panels
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.study.study_file import find_study_file, load_study_file
from tests.study.made_up import make_arm, paper_study

PAPER_STUDY = load_study_file(find_study_file([], None))
HOSTILE = "</svg><script>alert(1)</script>$\\frac{"


def figures_of(study):
    answers, _ = answer_all(study, PAPER_STUDY)
    return {one.name: one for one in draw_figures(study, PAPER_STUDY, answers)}


def drawn(panel):
    axes = Canvas().add_subplot()
    panel.draw(axes)
    return axes


def label_of(line):
    return str(line.get_label())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return load_study([paper_study(tmp_path_factory.mktemp("study"), ("fedavg",))]).ordered(PAPER_STUDY.order)


@pytest.fixture(scope="module")
def figures(study):
    return figures_of(study)


def lines_of(study, label):
    """The lines of metrics.jsonl of every run of an arm, read without the plugin."""
    arm = next(arm for arm in study.arms if arm.label == label)
    return [[json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in arm.runs]


def test_every_figure_of_the_paper_s_study_is_there(figures):
    assert list(figures) == [
        "differences", "crows_pairs_by_round", "stereoset_by_round", "heldout_loss_by_round", "dose",
        "segregated_and_mixed", "participation_figure", "client_weight", "client_bias_score", "bias_against_loss",
        "categories", "time_and_memory",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "key"), [("crows_pairs", "score"), ("stereoset", "ss")])
def test_a_curve_is_the_mean_over_seeds_and_its_band_reaches_from_the_lowest_to_the_highest(study, figures, name, key):
    panel = next(one for one in figures[f"{name}_by_round"].panels if "1B2C" in one.title)
    axes = drawn(panel)
    assert list(axes.lines[0].get_ydata()) == [50, 50]
    wanted = {"crows_pairs": "plain (n = 3)", "stereoset": "plain (n = 3, LMS 90)"}[name]
    line = next(line for line in axes.lines if label_of(line) == wanted)
    runs = lines_of(study, "fedavg 1B2C plain")
    values = [[record["global"][name][key] for record in same_round] for same_round in zip(*runs, strict=True)]
    assert list(line.get_ydata()) == pytest.approx([statistics.fmean(one) for one in values])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((min(map(min, values)), max(map(max, values))))
    assert f"{statistics.fmean(values[-1]):.2f} at round 2" in panel.alt


def test_the_axis_of_a_metric_without_a_short_name_has_its_title(figures):
    (panel, *_) = figures["heldout_loss_by_round"].panels
    assert drawn(panel).get_ylabel() == "held-out loss"
    assert panel.alt.startswith("held-out loss. ")


def test_the_forest_shows_pooled_differences_with_their_intervals_and_n(study, figures):
    answers, _ = answer_all(study, PAPER_STUDY)
    panel = figures["differences"].panels[0]
    axes = drawn(panel)
    squares = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "s"]
    assert squares == pytest.approx([answer.pooled[0].tested.difference.mean for answer in answers])
    assert all(" (n = " in text.get_text() for text in axes.texts)


def test_a_panel_has_at_most_five_lines_and_every_arm_is_in_one(study):
    panels = list(line_panels(study.arms))
    assert max(len(lines) for _, lines in panels) <= MOST_LINES
    assert sorted(arm.label for _, lines in panels for arm in lines.values()) == sorted(arm.label for arm in study.arms)
    together = next(lines for title, lines in panels if title.endswith("1B2C") and "of" in title)
    assert list(together) == ["plain", "bama (normalized)", "bama (paper)"]


def test_lines_keep_their_looks_by_name_and_differ_without_colour():
    names = ["plain", "bama (normalized)", "bama (paper)", "median", "krum"]
    found = looks(names)
    assert found["plain"] == LOOKS["plain"]
    assert looks(["1B2C bama (paper)", "krum"])["1B2C bama (paper)"] == found["bama (paper)"]
    assert looks(["krum"])["krum"] == found["krum"]
    assert len({(str(look.dashes), look.marker) for look in found.values()}) == len(names)
    assert len({look.colour for look in found.values()}) == len(names)
    assert looks(["fedavgm"])["fedavgm"] != LOOKS["fedavg"]


def test_clients_are_apart_by_kind(study, figures):
    panel = next(one for one in figures["client_weight"].panels if one.title == "fedavg 1B2C bama (normalized)")
    axes = drawn(panel)
    means = {label_of(line): line.get_ydata()[0] for line in axes.lines if "(n =" in label_of(line)}
    poisoned, clean = 1 / (1 + 2 * 2.718281828 ** (0.2 * 4)), None
    clean = (1 - poisoned) / 2
    assert means == {"poisoned (n = 3)": pytest.approx(poisoned), "clean (n = 6)": pytest.approx(clean)}
    panel = next(one for one in figures["client_bias_score"].panels if one.title == "fedavg 1B2C bama (normalized)")
    assert "poisoned: 6.00 at round 1, 6.00 at round 2; clean: 2.00" in panel.alt


def test_the_dose_response_is_the_final_mean_of_every_share(study, figures):
    axes = drawn(figures["dose"].panels[0])
    line = next(line for line in axes.lines if label_of(line).startswith("all (n = 3)"))
    finals = [
        statistics.fmean(run[-1]["global"]["crows_pairs"]["score"] for run in lines_of(study, f"fedavg {name} plain"))
        for name in ("3C", "1B2C", "2B1C", "3B")
    ]
    assert list(line.get_xdata()) == pytest.approx([0, 0.3333, 0.6667, 1])
    assert list(line.get_ydata()) == pytest.approx(finals)


def test_arms_of_one_rule_are_told_apart_and_one_that_a_dose_has_no_place_for_is_named(tmp_path):
    make_arm(tmp_path / "clean", [50.0, 51.0], scenario="3C")
    for lambda_ in (0.1, 0.2):
        settings = {"aggregation": "bama", "bama_weighting": "paper", "bama_lambda": lambda_}
        make_arm(tmp_path / f"bama-{lambda_}", [55.0, 56.0], **settings)
    for rounds in (2, 3):
        make_arm(tmp_path / f"biased-{rounds}", [60.0, 61.0], scenario="3B", client_samples=10 * rounds)
    figures = figures_of(load_study([tmp_path]))
    names = [name for _, lines in line_panels(load_study([tmp_path]).arms) for name in lines]
    assert [name for name in names if "bama" in name] == [
        "1B2C bama (paper) bama_lambda=0.1", "1B2C bama (paper) bama_lambda=0.2",
    ]  # fmt: skip
    assert figures["dose"].caption.endswith(
        "Not shown, at the place of another arm: fedavg 3B plain client_samples=30."
    )


def test_doses_over_orders_of_magnitude_stand_on_a_logarithmic_axis(tmp_path):
    for lambda_ in (0.05, 0.2, 0.8, 1.6):
        make_arm(tmp_path / str(lambda_), [55.0, 56.0], aggregation="bama", bama_lambda=lambda_)
    axes = drawn(figures_of(load_study([tmp_path]))["strength"].panels[0])
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "alpha x lambda")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.025", "0.1", "0.4", "0.8"]
    assert [label.get_text() for label in axes.get_xticklabels(minor=True)] == []


def test_categories_are_means_over_seeds(study, figures):
    panel = figures["categories"].panels[0]
    axes = drawn(panel)
    finals = [run[-1]["global"]["crows_pairs"]["score"] for run in lines_of(study, "fedavg 3C plain")]
    assert "A: fedavg 3C plain (n = 3)" in [label_of(line) for line in axes.lines]
    cells = axes.collections[0].get_array()
    assert cells[0][0] == pytest.approx(statistics.fmean(finals) - 5)
    assert cells[1][0] == pytest.approx(statistics.fmean(finals) + 5)


def test_seconds_are_stacked_by_phase_and_memory_is_the_highest_peak(figures):
    time, memory = figures["time_and_memory"].panels
    widths = [bar.get_width() for bar in drawn(time).patches]
    assert widths[:: len(widths) // 4] == pytest.approx([6, 3, 1.5, 0.75])  # 3 rounds
    assert {bar.get_width() for bar in drawn(memory).patches} == {1 / 1024}


def test_figures_without_data_are_left_out(tmp_path):
    found = figures_of(load_study([make_arm(tmp_path, [60.0])]))
    assert set(found) == {
        "crows_pairs_by_round", "stereoset_by_round", "heldout_loss_by_round", "bias_against_loss", "categories",
        "time_and_memory",
    }  # fmt: skip
    axes = drawn(found["crows_pairs_by_round"].panels[0])
    assert not axes.collections  # one seed has no band


def test_more_panels_than_fit_are_cut_and_the_caption_says_so():
    panels = [Panel(str(number), "", lambda axes: None) for number in range(MOST_PANELS + 2)]
    (one,) = figure("name", "Title", "Caption.", panels)
    assert (len(one.panels), "first 12 of 14 panels" in one.caption) == (12, True)
    assert figure("name", "Title", "Caption.", []) == []


def test_names_with_markup_and_mathematics_are_letters_in_the_drawing(tmp_path):
    for name in (HOSTILE, "_hidden"):
        make_arm(tmp_path / str(len(name)), [60.0], fed_alg=name)
    for one in figures_of(load_study([tmp_path])).values():
        for svg in panel_svgs(one):
            root = ElementTree.fromstring(svg)
            assert not [element for element in root.iter() if element.tag.endswith(("script", "foreignObject"))]
            assert "<script" not in svg


def test_a_name_that_begins_with_an_underscore_stays_in_the_legend():
    assert short("_hidden") == " _hidden"
    assert short("a\nb\x1b[31m") == "a b\\x1b[31m"
    assert short("abcdefghijkl", 10) == "abcd…hijkl"  # arms differ at the end


def test_panels_are_images_of_one_height_with_alternative_text_and_ids_of_their_own(figures):
    svgs = {name: panel_svgs(figures[name]) for name in ("differences", "crows_pairs_by_round")}
    for name, own in svgs.items():
        roots = [ElementTree.fromstring(svg) for svg in own]
        assert len({root.get("viewBox") for root in roots}) == 1
        for panel, root in zip(figures[name].panels, roots, strict=True):
            assert root.get("role") == "img"
            assert root.get("aria-label") == f"{panel.title}. {panel.alt}"
            assert re.search(r"\d", panel.alt)
            assert (root[0].text, root[1].text) == (panel.title, panel.alt)
    text = "".join(svg for own in svgs.values() for svg in own)
    ids = re.findall(r' id="([^"]+)"', text)
    wanted = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    assert len(ids) == len(set(ids))
    assert wanted <= set(ids)


def test_equal_input_gives_equal_bytes_whatever_the_user_s_style(figures):
    one = figures["differences"]
    first = panel_svgs(one), figure_png(one)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert (panel_svgs(one), figure_png(one)) == first
