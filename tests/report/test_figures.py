"""Figures draw the numbers of metrics.jsonl, tell arms apart without colour, and are the same bytes every time."""

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas

from fedbias_plugin.report.figures.arm_groups import MOST_LINES, group_arms
from fedbias_plugin.report.figures.bias_against_loss import bias_against_loss
from fedbias_plugin.report.figures.bias_curves import crows_curves, stereoset_curves
from fedbias_plugin.report.figures.category_heatmap import category_heatmap
from fedbias_plugin.report.figures.client_weights import client_weights
from fedbias_plugin.report.figures.drawing import (
    MOST_PANELS,
    Figure,
    LeftOut,
    Panel,
    capped,
    figure_png,
    panel_svgs,
    short,
)
from fedbias_plugin.report.figures.every_figure import draw_figures
from fedbias_plugin.report.figures.participation import participation
from fedbias_plugin.report.figures.segregated_against_mixed import segregated_against_mixed
from fedbias_plugin.report.figures.time_and_memory import time_and_memory
from fedbias_plugin.report.study import Study, load_study
from tests.report.made_up_study import paper_configs, settings, write_run, write_study

HOSTILE = "</svg><script>alert(1)</script>$\\frac{"
SEEDS = (1, 2, 3)


def study_of(folder: Path, configs: Iterable[dict[str, Any]]) -> Study:
    return load_study([write_study(folder / "runs", configs)])


def rounds_of(study: Study, label: str) -> list[list[dict[str, Any]]]:
    """The lines of metrics.jsonl of every run of an arm, read without the plugin."""
    arm = next(arm for arm in study.arms if arm.label == label)
    return [[json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in arm.runs]


def drawn(panel: Panel) -> Any:
    axes = Canvas().add_subplot()
    panel.draw(axes)
    return axes


def figure(found: Figure | LeftOut) -> Figure:
    assert isinstance(found, Figure)
    return found


@pytest.fixture(scope="module")
def host_and_bama(tmp_path_factory: pytest.TempPathFactory) -> Study:
    configs = [settings(aggregation=rule, seed=seed) for rule in ("plain", "bama") for seed in SEEDS]
    return study_of(tmp_path_factory.mktemp("two"), configs)


@pytest.fixture(scope="module")
def whole_paper(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of(tmp_path_factory.mktemp("paper"), paper_configs())


@pytest.mark.parametrize(
    ("draw", "benchmark", "key"), [(crows_curves, "crows_pairs", "score"), (stereoset_curves, "stereoset", "ss")]
)
def test_a_curve_is_the_mean_over_seeds_and_its_band_reaches_from_the_lowest_to_the_highest(
    host_and_bama: Study, draw: Any, benchmark: str, key: str
) -> None:
    (panel,) = figure(draw(host_and_bama)).panels
    axes = drawn(panel)
    assert list(axes.lines[0].get_ydata()) == [50, 50]
    for position, label in enumerate(("fedavg 1B2C plain", "fedavg 1B2C bama (normalized)")):
        runs = rounds_of(host_and_bama, label)
        values = [[record["global"][benchmark][key] for record in same_round] for same_round in zip(*runs, strict=True)]
        line = next(line for line in axes.lines[1:] if line.get_label().startswith(("plain", "bama")[position]))
        assert list(line.get_ydata()) == pytest.approx([statistics.fmean(one) for one in values])
        band = next(one for one in axes.collections if to_hex(one.get_facecolor()[0]) == to_hex(line.get_color()))
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((min(map(min, values)), max(map(max, values))))
        assert f"{statistics.fmean(values[-1]):.1f} in round 5" in panel.alt


def test_ss_is_never_named_without_its_lms(host_and_bama: Study) -> None:
    axes = drawn(figure(stereoset_curves(host_and_bama)).panels[0])
    assert set(axes.get_legend_handles_labels()[1]) == {"plain, LMS 83", "bama, LMS 83"}


def test_one_seed_has_no_band_and_the_caption_says_so(tmp_path: Path) -> None:
    found = figure(crows_curves(study_of(tmp_path, [settings()])))
    assert not drawn(found.panels[0]).collections
    assert "One seed an arm, so no band" in found.caption


def test_lines_of_a_panel_differ_without_their_colours_and_host_is_black(whole_paper: Study) -> None:
    for group in group_arms(whole_paper.arms):
        looks = [(str(line.style.dashes), line.style.marker) for line in group.lines]
        assert len(looks) == len(set(looks)) <= MOST_LINES
        assert all(line.style.colour == "#000000" for line in group.lines if line.label == "plain")


def test_every_arm_is_in_one_panel_and_host_beside_bama(whole_paper: Study) -> None:
    groups = group_arms(whole_paper.arms)
    assert sorted(line.arm.label for group in groups for line in group.lines) == sorted(
        arm.label for arm in whole_paper.arms
    )
    arms = [[line.arm for line in group.lines] for group in groups]
    with_bama = [panel for panel in arms if any(arm.aggregation == "bama" for arm in panel)]
    assert len(with_bama) >= 3
    for panel in with_bama:
        scenarios = {arm.scenario for arm in panel if arm.aggregation == "bama"}
        assert scenarios <= {arm.scenario for arm in panel if arm.aggregation == "plain"}


def test_runs_without_settings_go_by_their_names(tmp_path: Path) -> None:
    for number in range(9):
        (write_run(tmp_path / f"run {number}", settings(seed=number)) / "run.json").unlink()
    groups = group_arms(load_study([tmp_path]).arms)
    assert [len(group.lines) for group in groups] == [4, 5]
    assert groups[0].lines[0].label == "run 0"


def test_bars_of_client_weights_add_up_to_one_and_poisoned_ones_are_hatched(host_and_bama: Study) -> None:
    (panel,) = figure(client_weights(host_and_bama)).panels
    bars = [bar for bar in drawn(panel).patches if bar.get_height() > 0]
    poisoned = [bar for bar in bars if bar.get_hatch()]
    for position in range(5):
        own = [bar.get_height() for bar in bars if round(bar.get_x() + bar.get_width() / 2) == position]
        assert sum(own) == pytest.approx(1)
    assert [bar.get_height() for bar in poisoned] == pytest.approx([0.2 / 2.2] * 5)  # factor 0.2 beside twice 1
    assert "Weight on poisoned clients, mean over seeds: 0.09 in round 1, 0.09 in round 5." in panel.alt


def test_more_clients_than_can_be_told_apart_are_two_parts(tmp_path: Path) -> None:
    many = settings(aggregation="bama", num_clients=20, sample_clients=20)
    (panel,) = figure(client_weights(study_of(tmp_path, [many]))).panels
    heights = sorted({round(bar.get_height(), 6) for bar in drawn(panel).patches if bar.get_height() > 0})
    assert heights == [round(0.2 / 19.2, 6), round(19 / 19.2, 6)]


def test_the_heat_map_shows_the_scores_by_category_on_a_scale_around_fifty(host_and_bama: Study) -> None:
    panel = figure(category_heatmap(host_and_bama)).panels[1]
    axes = drawn(panel)
    runs = rounds_of(host_and_bama, panel.title)
    mesh = axes.collections[0]
    age = [
        statistics.fmean(run[number]["global"]["crows_pairs"]["by_type"]["age"]["score"] for run in runs)
        for number in range(6)
    ]
    race = [
        statistics.fmean(run[number]["global"]["stereoset"]["by_domain"]["race"]["ss"] for run in runs)
        for number in range(6)
    ]
    names = [label.get_text() for label in axes.get_yticklabels()]
    cells = mesh.get_array().reshape(13, 6)
    assert list(cells[names.index("age")]) == pytest.approx(age)
    assert list(cells[names.index("race (LMS 83)")]) == pytest.approx(race)
    assert mesh.norm.vmin + mesh.norm.vmax == pytest.approx(100)
    assert f"{age[5]:.0f}" in [text.get_text() for text in axes.texts]


def test_a_long_run_has_fewer_columns_and_no_numbers_in_cells(tmp_path: Path) -> None:
    axes = drawn(figure(category_heatmap(study_of(tmp_path, [settings(num_rounds=60)]))).panels[0])
    assert axes.collections[0].get_array().size == 13 * 21  # every third of 61 rounds, counted from the last
    assert not axes.texts


def test_a_point_a_run_lies_at_its_loss_and_bias(host_and_bama: Study) -> None:
    axes = drawn(figure(bias_against_loss(host_and_bama)).panels[0])
    last = [run[-1]["global"] for run in rounds_of(host_and_bama, "fedavg 1B2C plain")]
    points = next(one for one in axes.collections if one.get_label() == "plain").get_offsets()
    expected = [
        (one["heldout_loss"]["loss"], (abs(one["crows_pairs"]["score"] - 50) + abs(one["stereoset"]["ss"] - 50)) / 2)
        for one in last
    ]
    assert [tuple(point) for point in points] == [pytest.approx(pair) for pair in expected]
    assert [text.get_text() for text in axes.texts] == ["original model: loss 2.40, bias 1.5"]


def test_seconds_are_stacked_by_phase_and_memory_is_the_highest_peak(host_and_bama: Study) -> None:
    time, memory = figure(time_and_memory(host_and_bama)).panels
    widths = [bar.get_width() for bar in drawn(time).patches]
    assert widths[::2] == pytest.approx([50, 20, 0.6, 36])  # 5 rounds of 10 and 4 s, 6 of 0.1 and 6 s
    assert [bar.get_width() for bar in drawn(memory).patches] == pytest.approx([1 + 5 / 1024] * 2)


def test_segregated_bars_are_mean_deltas_with_the_spread_of_the_seeds(tmp_path: Path) -> None:
    configs = [settings(scenario=name, seed=seed) for name in ("1B2C", "mix-1B2C", "2B1C") for seed in SEEDS]
    study = study_of(tmp_path, configs)
    crows, _ = figure(segregated_against_mixed(study)).panels
    axes = drawn(crows)
    for bar, whisker, label in zip(
        axes.patches, axes.lines, ("fedavg 1B2C plain", "fedavg mix-1B2C plain"), strict=True
    ):
        deltas = [abs(run[-1]["global"]["crows_pairs"]["score"] - 50) for run in rounds_of(study, label)]
        assert bar.get_height() == pytest.approx(statistics.fmean(deltas))
        assert list(whisker.get_ydata()) == pytest.approx([min(deltas), max(deltas)])


def test_the_whisker_of_one_seed_is_its_interval_over_items(tmp_path: Path) -> None:
    study = study_of(tmp_path, [settings(scenario=name) for name in ("1B2C", "mix-1B2C")])
    crows = drawn(figure(segregated_against_mixed(study)).panels[0])
    delta = abs(rounds_of(study, "fedavg 1B2C plain")[0][-1]["global"]["crows_pairs"]["score"] - 50)
    assert list(crows.lines[0].get_ydata()) == pytest.approx([delta - 3, delta + 3])


def test_participation_compares_arms_of_one_scenario_only(whole_paper: Study) -> None:
    panels = figure(participation(whole_paper)).panels
    assert [panel.title for panel in panels] == ["Delta CrowS · fedavg 1B2C", "Delta SS · fedavg 1B2C"]
    for place in ("3/3, plain", "3/5, plain", "3/10, plain", "3/10, bama (normalized)"):
        assert place in panels[0].alt


def test_participation_shows_bama_of_default_strength_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    configs = [settings(num_clients=clients) for clients in (3, 5)]
    configs += [settings(num_clients=5, aggregation="bama", bama_lambda=strength) for strength in (5.0, 0.2, 9.0)]
    configs += [settings(num_clients=10, learning_rate=1.0)]  # of other settings: no bar beside them
    study = study_of(tmp_path, configs)
    strong, default = (next(a for a in study.arms if a.settings["bama_lambda"] == one and "bama" in a.label)
                       for one in (5.0, 0.2))  # fmt: skip
    path = strong.runs[0].folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"score": 5', '"score": 9'))
    found = figure(participation(load_study([tmp_path])))
    score = rounds_of(study, default.label)[0][-1]["global"]["crows_pairs"]["score"]
    assert f"3/5, bama (normalized): {abs(score - 50):.1f}" in found.panels[0].alt
    assert "3/10" not in found.panels[0].alt
    assert f"{default.label} is shown; not shown: {strong.label}" in found.caption


def test_a_line_is_not_named_by_a_setting_that_it_does_not_read(tmp_path: Path) -> None:
    strengths = [settings(aggregation="bama", bama_lambda=one) for one in (0.1, 0.2)]
    (group,) = group_arms(study_of(tmp_path, [settings(), *strengths]).arms)
    assert [line.label for line in group.lines] == ["plain", "bama bama_lambda=0.1", "bama bama_lambda=0.2"]


def test_figures_without_data_are_left_out_with_a_reason(tmp_path: Path) -> None:
    figures, left_out = draw_figures(study_of(tmp_path, [settings()]))
    assert [one.title for one in left_out] == [
        "Client weights by round under BAMA",
        "Segregated against mixed biased data (the paper's Figure 1)",
        "Bias by participation",
    ]
    assert all(one.reason.endswith(".") for one in left_out)
    assert len(figures) == 5


def test_more_panels_than_fit_are_cut_and_the_caption_says_so() -> None:
    panels = [Panel(str(number), "", lambda axes: None) for number in range(MOST_PANELS + 2)]
    shown, more = capped(panels, "arms")
    assert (len(shown), "first 9 of 11 arms" in more) == (9, True)
    assert capped(panels[:3], "arms")[1] == ""


def test_names_with_markup_and_mathematics_are_letters_in_the_drawing(tmp_path: Path) -> None:
    study = study_of(tmp_path, [settings(fed_alg=name) for name in (HOSTILE, "_hidden")])
    for one in draw_figures(study)[0]:
        for svg in panel_svgs(one):
            root = ElementTree.fromstring(svg)
            assert not [element for element in root.iter() if element.tag.endswith(("script", "foreignObject"))]
            assert "<script" not in svg
    (panel,) = figure(time_and_memory(study)).panels[:1]
    texts = [text.get_text() for text in drawn(panel).texts]
    assert any(text.startswith("</svg><script>") for text in texts)


def test_a_name_that_begins_with_an_underscore_stays_in_the_legend() -> None:
    assert short("_hidden") == " _hidden"
    assert short("a\nb\x1b[31m") == "a b\\x1b[31m"
    assert short("x" * 100, 10) == "xxxxxxxxx…"


def test_no_two_panels_share_an_id_and_every_reference_leads_somewhere(host_and_bama: Study) -> None:
    svgs = [svg for one in draw_figures(host_and_bama)[0] for svg in panel_svgs(one)]
    ids = [name for svg in svgs for name in re.findall(r' id="([^"]+)"', svg)]
    wanted = {name for svg in svgs for name in re.findall(r'(?:url\(|href=")#([^")]+)', svg)}
    assert len(ids) == len(set(ids))
    assert wanted
    assert wanted <= set(ids)


def test_every_panel_is_an_image_with_alternative_text_and_numbers(host_and_bama: Study) -> None:
    for one in draw_figures(host_and_bama)[0]:
        for panel, svg in zip(one.panels, panel_svgs(one), strict=True):
            root = ElementTree.fromstring(svg)
            assert root.get("role") == "img"
            assert root.get("aria-label") == f"{panel.title}. {panel.alt}"
            assert re.search(r"\d", panel.alt)
            assert root[0].text == panel.title
            assert root[1].text == panel.alt


def test_equal_input_gives_equal_bytes_whatever_the_user_s_style(host_and_bama: Study) -> None:
    one = figure(client_weights(host_and_bama))
    first = panel_svgs(one), figure_png(one)
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        again = panel_svgs(figure(client_weights(host_and_bama))), figure_png(one)
    assert again == first
    assert first[1].startswith(b"\x89PNG")
    assert not re.search(r"20\d\d-\d\d-\d\d", "".join(first[0]))
