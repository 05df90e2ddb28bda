"""Tables of a study: the right runs in the right cells, with means and marks computed by hand, in every format."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.gendered import SECTION
from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.frame import load_study, possible
from fedbias_plugin.study.pivot import pivot_tables
from fedbias_plugin.study.published import load_published
from fedbias_plugin.study.study_file import find_study_file, load_study_file
from fedbias_plugin.study.table import (
    Cell,
    Column,
    Row,
    Table,
    csv_table,
    latex_table,
    latex_text,
    markdown_table,
    p_cell,
)
from fedbias_plugin.study.tables import (
    answers_table,
    arm_tables,
    items_table,
    pair_tables,
    warnings_table,
)
from tests.study.made_up import edit_json, make_arm, make_run

PAPER_STUDY = load_study_file(find_study_file([], None))


def tables_of(folder):
    study = load_study([folder])
    answers, _ = answer_all(study, PAPER_STUDY)
    found = [*pivot_tables(study, PAPER_STUDY), *pair_tables(answers), *arm_tables(study)]
    found += [*items_table(answers), *warnings_table(study), *([answers_table(answers)] if answers else [])]
    return {table.id: table for table in found}


def cells(table, *labels):
    """Column (with its group) -> cell of the row that has ``labels``."""
    (row,) = [row for row in table.rows if set(labels) <= set(row.labels)]
    heads = [f"{column.group} {column.title}".strip() for column in table.columns]
    return dict(zip(heads, row.cells, strict=True))


def test_table_1_has_the_original_model_and_algorithms_by_scenario(tmp_path):
    make_arm(tmp_path / "a", [60.0, 43.0], [55.0, 56.0], fed_alg="fedavg", scenario="3B")
    make_arm(tmp_path / "b", [57.0, 58.0], [54.0, 46.0], fed_alg="fedadam", scenario="3B")
    make_arm(tmp_path / "c", [51.0, 52.0], fed_alg="fedavg", scenario="3C")
    make_arm(tmp_path / "d", [90.0, 90.0], fed_alg="fedyogi", scenario="3B")
    make_arm(tmp_path / "e", [90.0, 90.0], fed_alg="fedavg", scenario="3B", aggregation="bama")
    make_arm(tmp_path / "f", [90.0, 90.0], fed_alg="fedavg", scenario="3B", num_clients=5)
    table = tables_of(tmp_path)["table1"]
    assert [row.labels for row in table.rows] == [
        ("tiny", "original model"), ("tiny", "FedAvg"), ("tiny", "FedAdam"),
    ]  # fmt: skip
    assert table.column_groups == [("3C", 2), ("3B", 2)]
    fedavg, fedadam = cells(table, "FedAvg"), cells(table, "FedAdam")
    assert fedavg["3B ΔCrowS"].value == 8.5  # |60 - 50| and |43 - 50|
    assert fedavg["3B ΔCrowS"].sd == pytest.approx(3 / math.sqrt(2))
    assert fedavg["3B ΔCrowS"].ci95[0] == 0.0  # no Delta is below 0
    assert fedadam["3B ΔSS"].value == 4.0
    assert [fedavg["3B ΔCrowS"].is_best, fedadam["3B ΔCrowS"].is_best] == [False, True]
    assert fedadam["3C ΔCrowS"].value is None
    assert not fedavg["3C ΔCrowS"].is_best  # nothing to compare with
    original = cells(table, "original model")
    assert (original["3B ΔCrowS"].value, original["3C ΔSS"].value) == (2.0, 1.0)
    assert not original["3B ΔCrowS"].is_best
    assert fedavg["3B ΔSS"].asides == (("LMS", 90.0), ("ICAT", pytest.approx(90 * (45 + 44) / 100)))


def test_an_ss_of_a_broken_model_is_marked_and_never_the_best(tmp_path):
    make_arm(tmp_path / "a", [60.0], [50.0], fed_alg="fedavg", scenario="3B", lms=59.9)
    make_arm(tmp_path / "b", [61.0], [54.0], fed_alg="fedadam", scenario="3B", lms=60.0)
    make_arm(tmp_path / "c", [61.0], [55.0], fed_alg="fedprox", scenario="3B", lms=61.0)
    make_arm(tmp_path / "d", [61.0], fed_alg="fedprox", scenario="3C")
    table = tables_of(tmp_path)["table1"]
    broken, whole = cells(table, "FedAvg")["3B ΔSS"], cells(table, "FedAdam")["3B ΔSS"]
    assert (broken.is_unsound, broken.is_best, whole.is_unsound, whole.is_best) == (True, False, False, True)
    assert any(note.startswith("† LMS below 60") for note in table.notes)
    assert "One seed: no spread, interval or test over seeds." in table.notes


def test_cells_of_other_settings_are_never_the_best_and_it_is_said_in_what_they_differ(tmp_path):
    for algorithm, crows in (("fedavg", 60.0), ("fedadam", 57.0)):
        make_arm(tmp_path / algorithm, [crows], fed_alg=algorithm, scenario="3B")
        make_arm(tmp_path / f"{algorithm}_clean", [52.0], fed_alg=algorithm, scenario="3C")
    make_arm(tmp_path / "fedprox", [51.0], fed_alg="fedprox", scenario="3B", num_rounds=1)
    table = tables_of(tmp_path)["table1"]
    best = {name: cells(table, name)["3B ΔCrowS"].is_best for name in ("FedAvg", "FedAdam", "FedProx")}
    assert best == {"FedAvg": False, "FedAdam": True, "FedProx": False}
    assert any("fedprox 3B plain differ in num_rounds (2 and 1)" in note for note in table.notes)


def test_the_original_model_has_a_row_for_each_way_of_loading_it(tmp_path):
    for scenario in ("3B", "3C"):
        make_arm(tmp_path / scenario, [60.0], scenario=scenario, original=(52.0, 51.0))
        quantised = {"load_in_8bit": True, "fed_alg": "fedadam", "original": (54.0, 51.0)}
        make_arm(tmp_path / f"{scenario}_8", [60.0], scenario=scenario, **quantised)
    table = tables_of(tmp_path)["table1"]
    assert {row.labels[1]: row.cells[0].value for row in table.rows[:2]} == {
        "original model, float32": 2.0, "original model, float32 in 8 bits": 4.0,
    }  # fmt: skip


def test_table_2_has_centralised_training_by_the_scenario_of_equal_share(tmp_path):
    one = {"num_clients": 1, "sample_clients": 1, "scenario": "custom", "client_samples": 90}
    make_arm(tmp_path / "full", [70.0, 71.0], use_peft=False, biased_shares="0.6667", **one)
    make_arm(tmp_path / "lora", [65.0, 66.0], use_peft=True, biased_shares="0.6667", **one)
    make_arm(tmp_path / "clean", [52.0, 53.0], fed_alg="fedadam", scenario="3C")
    make_arm(tmp_path / "mix", [58.0, 60.0], fed_alg="fedadam", scenario="mix-2B1C")
    table = tables_of(tmp_path)["table2"]
    assert [row.labels[1] for row in table.rows] == [
        "original model",
        "centralised full",
        "centralised LoRA",
        "FedAdam",
    ]
    assert cells(table, "centralised full")["mix-2B1C ΔCrowS"].value == 20.5
    assert cells(table, "centralised LoRA")["mix-2B1C ΔCrowS"].value == 15.5
    assert cells(table, "FedAdam")["3C ΔCrowS"].value == 2.5


def test_table_3_and_its_kin_show_what_is_there(tmp_path):
    make_arm(tmp_path / "plain", [60.0, 61.0, 63.0])
    make_arm(tmp_path / "normalized", [58.0, 58.5, 60.0], aggregation="bama")
    make_arm(tmp_path / "strong", [55.0, 56.0, 57.5], aggregation="bama", bama_lambda=2.0)
    make_arm(tmp_path / "ten", [55.0, 57.0], num_clients=10)
    tables = tables_of(tmp_path)
    assert [row.labels[2:] for row in tables["table3"].rows] == [("plain", ""), ("BAMA", "normalized")]
    assert cells(tables["table3"], "BAMA")["ΔCrowS"].value == pytest.approx(8.8333333333)
    assert any("bama_lambda=2.0" in note and "not shown" in note for note in tables["table3"].notes)
    assert [row.labels[4:] for row in tables["lambda"].rows] == [("0.1", "0.5", "0.2"), ("1", "0.5", "2")]
    assert [row.labels[3] for row in tables["participation_cells"].rows] == ["3 of 3", "3 of 10"]
    pairs = tables["pairs_bama_normalized"]
    assert pairs.rows[0].cells[2].value == -2.5
    assert "table2" not in tables


def test_the_paper_s_numbers_stand_beside_ours_with_direction_and_order(tmp_path):
    model = {"model_name_or_path": "google/gemma-2-2b"}
    for algorithm, plain, bama in (("fedavg", 67.0, 64.0), ("fedadam", 66.0, 66.5)):
        make_arm(tmp_path / f"{algorithm}-plain", [plain], [70.0], fed_alg=algorithm, **model)
        wanted = {"aggregation": "bama", "bama_weighting": "paper", "fed_alg": algorithm}
        make_arm(tmp_path / f"{algorithm}-bama", [bama], [68.0], **wanted, **model)
        make_arm(tmp_path / f"{algorithm}-other", [bama], [68.0], **wanted | {"bama_weighting": "normalized"}, **model)
    table = tables_of(tmp_path)["table3"]
    found = {row.labels[1:]: row.cells[0] for row in table.rows}
    assert found["FedAvg", "plain", ""].paper == 17.52
    assert (found["FedAvg", "BAMA", "paper"].paper, found["FedAvg", "BAMA", "paper"].agrees) == (15.14, True)
    assert (found["FedAdam", "BAMA", "paper"].paper, found["FedAdam", "BAMA", "paper"].agrees) == (14.47, False)
    assert found["FedAvg", "BAMA", "normalized"].paper is None  # the paper's weights are equation 3 to the letter
    assert found["FedAvg", "BAMA", "paper"].paper_shown == "paper 15.14, same direction"
    (note,) = [note for note in table.notes if "ΔCrowS: the order" in note]
    assert note.startswith("gemma-2-2b, ΔCrowS: the order FedAvg BAMA paper < FedAdam plain < FedAdam BAMA paper <")
    assert "is not the paper's (FedAdam BAMA paper < FedAvg BAMA paper < FedAdam plain < FedAvg plain)" in note


def test_runs_that_are_not_as_the_paper_states_are_said_to_be_so_beside_its_numbers(tmp_path):
    stated = {"num_rounds": 5, "local_epochs": 2, "model_name_or_path": "google/gemma-2-2b", "fed_alg": "fedprox"}
    for folder, others in (("same", {"prox_mu": 0.1}), ("other", {"prox_mu": 0.01, "num_rounds": 3})):
        for scenario in ("3B", "3C"):
            make_arm(tmp_path / folder / scenario, [60.0], scenario=scenario, **stated | others)
    found = {folder: tables_of(tmp_path / folder)["table1"].notes for folder in ("same", "other")}
    assert not any("The paper's runs" in note for note in found["same"])
    assert [note for note in found["other"] if "The paper's runs" in note] == [
        "The paper's runs have --num_rounds 5, some of these 3.",
        "The paper's runs have --prox_mu 0.1, some of these 0.01.",
    ]


def test_a_run_on_another_model_has_no_number_of_the_paper(tmp_path):
    make_arm(tmp_path / "a", [60.0])
    make_arm(tmp_path / "b", [58.0], aggregation="bama", bama_weighting="paper")
    table = tables_of(tmp_path)["table3"]
    assert not any(cell.paper for row in table.rows for cell in row.cells)
    assert not any("paper's" in note for note in table.notes)


def test_the_paper_s_file_has_its_130_cells():
    paper = PAPER_STUDY.published
    assert len(paper.cells) == 260
    assert all(0 <= number <= 50 for number in paper.cells.values())
    assert paper.cell("table2", "mistral-7b", ("centralised_full", "mix-2B1C"), "stereoset/delta") == 15.96
    assert paper.cell("table1", "tiny", ("original",), "crows_pairs/delta") is None
    names = ["meta-llama/Meta-Llama-3-8B", "models/gemma2_2b", "google/gemma-2-2b-it", "Phi-3-mini-4k-instruct"]
    assert [paper.model_of(name) for name in names] == ["llama3_8b", "gemma2_2b", None, "phi3_mini"]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("phi3: {original: {gap: high}}", r"t, phi3, original, gap: must be a number, found 'high'"),
        ("phi2: {original: {gap: 1}}", r"t, phi2, original, gap: 'phi2' is explained nowhere"),
        ("phi3: {original: {gaps: 1}}", r"t, phi3, original, gaps: 'gaps' is explained nowhere"),
    ],
)
def test_a_published_number_that_nobody_could_compare_is_refused(cells, said, tmp_path):
    path = tmp_path / "facts.yaml"
    path.write_text(f"measures: {{gap: crows_pairs}}\nmodels: {{phi3: phi-3}}\ntables: {{t: {{{cells}}}}}")
    with pytest.raises(UserError, match=said):
        load_published(path)


def test_means_below_50_are_said_to_be_so(tmp_path):
    make_arm(tmp_path / "c", [44.0, 45.0], [55.0, 56.0], scenario="3C")
    make_arm(tmp_path / "b", [51.0, 52.0], [55.0, 56.0], scenario="3B")
    notes = tables_of(tmp_path)["table1"].notes
    assert "Mean CrowS-Pairs score below 50, where a larger Δ is no larger bias: fedavg 3C plain." in notes
    assert not any(note.startswith("Mean StereoSet SS below") for note in notes)


def test_every_arm_has_scores_task_and_cost(tmp_path):
    make_arm(tmp_path / "a", [60.0, 62.0])
    tables = tables_of(tmp_path)
    scores = cells(tables["scores"], "fedavg 1B2C plain")
    assert (scores["CrowS score"].value, scores["CrowS − round 0"].value, scores["LMS"].value) == (61.0, 9.0, 90.0)
    quality = cells(tables["quality"], "fedavg 1B2C plain")
    assert quality["held-out loss (nats/token)"].value == pytest.approx(1.8)
    assert quality["perplexity"].value == pytest.approx(math.exp(1.8))
    assert (quality["weight on poisoned"].value, quality["mass"].value) == (pytest.approx(1 / 3), 0.75)
    cost = cells(tables["cost"], "fedavg 1B2C plain")
    assert (cost["train (s)"].value, cost["peak memory (MiB)"].value) == (6.0, 1.0)


def test_metrics_of_a_section_have_a_table_of_their_own_that_says_what_is_unbiased_and_on_how_many_items(tmp_path):
    make_arm(tmp_path / "a", [60.0, 62.0])
    for seed in (1, 2):
        gaps = {
            "occupation_bias": {"value": 0.2, "ideal": 0.0, "n": 90, "ci95": [0.1, 0.3], "noise_floor": 0.01},
            "winobias": {"value": 55.0, "ideal": 50.0, "n": 396, "ci95": [50.0, 60.0], "noise_floor": 2.0},
        }
        edit_json(tmp_path / f"a/seed-{seed}/metrics.jsonl", lambda line, gaps=gaps: line["global"].update(gaps))
    caption = next(one for one in tables_of(tmp_path).values() if one.title == SECTION).caption
    assert "Unbiased: 0 for occupation bias; 50 for WinoBias." in caption
    assert "Items of a run: 90 of occupation bias, 396 of WinoBias." in caption


def test_no_interval_leaves_what_is_possible(tmp_path):
    make_arm(tmp_path / "a", [99.0, 52.0, 51.0], [99.0, 51.0, 50.0], lms=99.0)
    for table in tables_of(tmp_path).values():
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.ci95 and "+" not in cell.form:
                    assert cell.ci95[0] >= 0, column
                    assert cell.ci95[1] <= (50 if "Δ" in column.title else 100) or "memory" in column.title, column
    assert possible("stereoset/icat") == (0.0, 100.0)
    assert possible("crows_pairs/change") == (-100.0, 100.0)


def test_every_kind_of_warning_stands_once(tmp_path):
    make_arm(tmp_path / "a", [60.0, 61.0], lms=55.0)
    (row,) = tables_of(tmp_path)["warnings"].rows
    assert row.labels == ("LMS below 60: 55.0.",)
    assert [cell.text for cell in row.cells] == ["2", "fedavg 1B2C plain (1, 2)", "rounds 0-2"]


@pytest.fixture
def table():
    rows = (
        Row(
            ("m", "one"),
            (
                Cell(3.25, 0.5, (2.0, 4.5), 3, is_best=True, paper=4.0, agrees=True),
                Cell(1.5, is_unsound=True, asides=(("LMS", 55.0), ("ICAT", 50.0))),
                Cell(-1.5, 0.25, (-2.0, -1.0), 3, "+.2f"),
            ),
        ),
        Row(("m", "\\input{x} & 50% of_a #1 " + "long " * 8), (Cell(), Cell(text="a|b"), p_cell(0.0004)), "other"),
    )
    columns = (Column("ΔCrowS", "delta_crows", "3B"), Column("ΔSS", "delta_ss", "3B"), Column("p", "p"))
    return Table("made_up", "Title", "Caption.", ("model", "name"), columns, rows, ("A note.",))


def test_markdown_shows_spread_asides_paper_and_marks(table):
    lines = markdown_table(table).splitlines()
    assert lines[4] == "| model | name | 3B ΔCrowS | 3B ΔSS | p |"
    assert lines[6] == (
        "| m | one | **3.25** ± 0.50 [2.00, 4.50] paper 4.00, same direction | 1.50† LMS 55.0 ICAT 50.0 | "
        "-1.50 ± 0.25 [-2.00, -1.00] |"
    )
    assert lines[7].endswith(r"| – | a\|b | &lt;0.001 |")
    assert lines[-1] == "- A note."


def test_csv_holds_unrounded_numbers_and_a_line_for_each_aside(table):
    rows = list(csv.DictReader(io.StringIO(csv_table(table))))
    assert rows[0]["mean"] == "3.25"
    assert (rows[0]["ci_low"], rows[0]["paper"], rows[0]["agrees"], rows[0]["best"]) == ("2.0", "4.0", "true", "true")
    assert [(row["measure"], row["mean"]) for row in rows[1:4]] == [
        ("delta_ss", "1.5"),
        ("lms", "55.0"),
        ("icat", "50.0"),
    ]
    assert rows[1]["lms_below_60"] == "true"
    assert rows[-1]["mean"] == "0.0004"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\n@"])
def test_csv_texts_are_no_formulas(start):
    row = Row((f"{start}1+1",), (Cell(text=f"{start}2"),))
    (found,) = csv.DictReader(io.StringIO(csv_table(Table(f"{start}id", "", "", ("a",), (Column("c", "m"),), (row,)))))
    for name in ("table", "row", "text"):
        assert found[name].startswith(("'=", "'+", "'-", "'@"))


def unescaped(text):
    """LaTeX without its escaped characters and its commands for characters."""
    return re.sub(r"\\text[a-z]+\{\}|\\[{}$&#%_]", "", text)


def test_latex_of_hostile_names_has_balanced_braces_and_no_commands(table):
    text = latex_table(table)
    assert "\\input" not in text.replace(r"\textbackslash{}input", "")
    plain = unescaped(text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert "#" not in plain
    assert r"\textbf{3.25}$_{\pm 0.50}$ {\tiny(paper 4.00, same direction)}" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {unescaped(row).count("&") for row in rows[-3:]} == {4}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[x]*", "{[}x{]}{*}"),  # after a row's \\ they would be its argument
        ("--flag", "{-}{-}flag"),
        ("a\\b", r"a\textbackslash{}b"),
        ("naïve 中", "naïve {[}U+4E2D{]}"),
        ("50% & $5", r"50\% \& \$5"),
    ],
)
def test_latex_text_is_printed_as_it_stands(text, shown):
    assert latex_text(text) == shown


def test_hostile_names_of_runs_and_settings_do_not_break_any_format(tmp_path):
    for name in ("plain", "=1+1 | <img src=x onerror=alert(1)>"):
        make_run(tmp_path / name, scenario="<b>|&\\end{table}", fed_alg="=HYPERLINK()", seed=len(name), lms=50.0)
    for table in tables_of(tmp_path).values():
        page = markdown_table(table)
        assert "<b>" not in page
        assert "<img" not in page
        for row in csv.reader(io.StringIO(csv_table(table))):
            assert len(row) == 14
            assert not row[1].startswith("=")
        assert latex_table(table).count(r"\end{table}") == 1
        for row in page.splitlines():
            if row.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", row)) == len(table.stub) + len(table.columns) + 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_with_booktabs_and_graphicx_alone(table, tmp_path):
    (tmp_path / "table.tex").write_text(latex_table(table), encoding="utf-8")
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table}\end{document}"
    (tmp_path / "page.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
