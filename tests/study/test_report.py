"""The report as a whole: what stands where, that it appears whole, and that nothing hostile reaches a reader."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml

from fedbias_plugin.errors import UserError
from fedbias_plugin.study import report
from fedbias_plugin.study.about import caveats, conclusion
from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.drawing import look_at, shorts
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.study.report import write_report
from fedbias_plugin.study.study_file import find_study_file, load_study_file
from tests.study.made_up import edit_json, make_arm, make_run

OF_ITEMS = ("crows_pairs", "stereoset")
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_arm(folder / "plain", [66.0, 67.0, 68.0], [60.0, 61.0, 62.5])
    make_arm(folder / "bama", [51.0, 52.1, 53.0], [51.0, 52.5, 53.0], aggregation="bama")
    return folder


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    return write_report([runs], tmp_path_factory.mktemp("out") / "report").parent


class Page(HTMLParser):
    """Tags in order, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_a_report_is_a_page_markdown_pictures_and_tables(written):
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {
        "report.html",
        "report.md",
        "figures/differences.png",
        "tables/comparisons.csv",
        "tables/table3.tex",
    } <= files
    assert all(report.OWN_FILES.fullmatch(name) for name in files)


def test_title_question_conclusion_table_and_figure_come_first_and_words_last(written):
    page = (written / "report.html").read_text()
    wanted = [
        "Social bias in federated fine-tuning", "does BAMA hold it back?",
        "Model: tiny. 6 runs, 2 arms, seeds 1, 2, 3.",
        "Supported (1 of 1): “BAMA, with normalised weights, reduces the bias of the global model”. Tested in one "
        "model (tiny) and one algorithm (fedavg) only.",
        'id="table-comparisons"', 'id="figure-differences"', 'id="figures"', 'id="tables"', 'id="warnings"', 'id="run"',
        'id="words"',
    ]  # fmt: skip
    places = [page.index(text) for text in wanted]
    assert places == sorted(places)
    assert page.count('id="words"') == 1
    markdown = (written / "report.md").read_text()
    assert markdown.startswith("# Social bias in federated fine-tuning\n")
    assert markdown.count("## Words") == 1


def test_the_words_are_the_field_s(written):
    for name in ("report.html", "report.md"):
        text = (written / name).read_text()
        for jargon in ("told from chance", "cannot be told", "untold"):
            assert jargon not in text


def test_the_page_needs_no_network_and_runs_nothing(written):
    page = Page((written / "report.html").read_text())
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "link", "iframe")]
    policy = next(attrs for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert links
    assert {link[1:] for link in links} <= ids


def test_every_picture_of_the_markdown_is_there(written):
    names = re.findall(r"\]\((figures/[^)]+)\)", (written / "report.md").read_text())
    assert names
    assert all((written / name).is_file() for name in names)


def test_equal_runs_give_equal_bytes_and_an_older_report_is_replaced(runs, written, tmp_path):
    target = tmp_path / "again"
    (target / "tables").mkdir(parents=True)
    (target / "tables/old.csv").write_text("old")
    write_report([runs], target)
    assert not (target / "tables/old.csv").exists()
    for path in sorted(written.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (target / path.relative_to(written)).read_bytes(), path.name


@pytest.mark.parametrize("name", ["notes.txt", "figures/mine.svg", "tables/deep/table.csv"])
def test_a_folder_that_holds_other_things_is_refused(runs, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="which is not of a report"):
        write_report([runs], tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_missing_library_is_named_before_anything_is_read(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"the report needs jinja2: pip install jinja2"):
        write_report([tmp_path / "nowhere"], tmp_path / "out")


def test_a_study_of_one_s_own_has_its_title_tables_and_comparisons(tmp_path):
    for rate, score in ((1e-5, 60.0), (1e-3, 70.0)):
        make_arm(tmp_path / f"runs/{rate}", [score, score + 1.1], learning_rate=rate)
    own = {
        "title": "Does the rate matter?",
        "question": "Is a fast model more biased?",
        "comparisons": [
            {
                "id": "fast",
                "vary": "learning_rate",
                "from": 1e-5,
                "to": 1e-3,
                "expect": "up",
                "claim": "Faster is worse",
            }
        ],
        "tables": [{"id": "rates", "title": "By rate", "rows": ["learning_rate"], "measures": ["crows_pairs", "mass"]}],
        "figures": [{"id": "rate_dose", "title": "By rate", "x": "learning_rate"}],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(own))
    page = write_report([tmp_path], tmp_path / "report")
    text = page.read_text()
    assert "<h1>Does the rate matter?</h1>" in text
    assert "Faster is worse" in text
    assert (page.parent / "figures/rate_dose.png").is_file()
    rates = (page.parent / "tables/rates.csv").read_text().splitlines()
    assert rates[1].startswith("rates,1e-05,CrowS score,crows_score,60.55,")
    assert "Table 1" not in text


def test_nothing_of_runs_becomes_markup(tmp_path):
    for seed in (1, 2):
        run = make_run(tmp_path / f"runs/<b>{seed}", fed_alg=HOSTILE, model_name_or_path=HOSTILE, seed=seed)
        edit_json(run / "metrics.jsonl", lambda line: line.update(warnings=[f"{HOSTILE}: said."]))
        edit_json(run / "run.json", lambda run: run.update(versions={HOSTILE: HOSTILE}))
    written = write_report([tmp_path / "runs"], tmp_path / "out").parent
    page = Page((written / "report.html").read_text())
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "b")]
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert "<script" not in (written / "report.md").read_text()


def test_settings_of_wrong_types_do_not_stop_the_report(tmp_path):
    odd = {"fed_alg": [1], "learning_rate": {"a": 1}, "num_clients": None, "sample_clients": [], "scenario": 3}
    for number, (name, value) in enumerate(odd.items()):
        run = make_run(tmp_path / f"runs/{number}", seed=number, aggregation="bama" if number else "plain")
        edit_json(run / "run.json", lambda run, name=name, value=value: run["config"].update({name: value}))
    assert write_report([tmp_path / "runs"], tmp_path / "out").is_file()


def test_a_claim_that_nothing_decides_is_open(tmp_path):
    make_arm(tmp_path / "plain", [66.0])
    make_arm(tmp_path / "bama", [51.0], aggregation="bama")
    answers, _ = answer_all(load_study([tmp_path]), load_study_file(find_study_file([], None)))
    assert conclusion(answers) == "Open (1 of 1): not significant, or not testable with these runs."
    assert conclusion([]) == "These runs answer no claim. There is nothing to compare."


def test_a_significant_difference_is_told_on_top_though_nothing_was_claimed(tmp_path):
    make_arm(tmp_path / "plain", [66.0, 67.0, 65.0, 66.5])
    make_arm(tmp_path / "bama", [51.0, 52.5, 50.0, 51.0], aggregation="bama")
    asked = load_study_file(find_study_file([], None))
    bama = next(one for one in asked.comparisons if one.id == "bama_normalized")
    answers, _ = answer_all(load_study([tmp_path]), replace(asked, comparisons=(replace(bama, claim=""),)))
    told = (
        f"Significant, of 1 comparison without a claim: “{bama.title}” (CrowS -15.00; 1 other measure not significant)."
    )
    assert conclusion(answers) == told
    claimed, _ = answer_all(load_study([tmp_path]), replace(asked, comparisons=(bama,)))
    assert conclusion([*claimed, *answers]).endswith(f" {told}")


def test_a_study_file_calls_its_arms_and_figures_tell_long_names_apart(tmp_path):
    for number, rate in enumerate((1e-5, 1e-3)):
        make_arm(tmp_path / f"runs/{number}", [60.0, 61.0], learning_rate=rate)
    study = load_study([tmp_path])
    named = study.called({}, {"slow": {"learning_rate": 1e-5}})
    assert named.arms[0].label == "slow"
    assert [arm.place for arm in named.arms] == [0, None]
    assert look_at(0) != look_at(1)
    assert len({look_at(place) for place in range(12)}) == 12
    both = study.called({}, {"a": {"fed_alg": "fedavg"}})
    assert [arm.label for arm in both.arms] == ["a", "a (2)"]
    long = [f"{'a long beginning of its own ' * 2}{one} {'and a long end of its own ' * 2}" for one in ("x", "y")]
    assert len(set(shorts(long, 30))) == 2
    assert shorts(["short", "one"], 30) == ["short", "one"]


def said(*folders):
    return [text for text in caveats(load_study(folders), folders) if "paired tests" not in text]


def plan(folder, **experiments):
    stored = {"experiments": {name: {"title": name, "runs": runs} for name, runs in experiments.items()}}
    (folder / "sweep.json").write_text(json.dumps(stored))


def test_runs_that_a_sweep_plans_and_the_report_lacks_are_counted_by_experiment(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, seed=ord(name))
    plan(tmp_path, table1=["a", "b", "c"], table3=["b"])
    (line,) = said(tmp_path)
    assert "2 of the 3 runs" in line
    assert "(table1: 2 of 3, table3: 1 of 1)" in line
    plan(tmp_path, table1=["a", "b"])
    assert said(tmp_path) == []
    (tmp_path / "sweep.json").write_text('{"experiments": [1]}')
    assert said(tmp_path) == []


def test_a_sweep_s_report_asks_what_its_experiment_asks(tmp_path):
    def found(given=None):
        return find_study_file([tmp_path], given).stem

    assert found() == "paper"
    plan(tmp_path, fedpsf=["a"])
    assert (found(), found("offsite")) == ("fedpsf", "offsite")
    plan(tmp_path, fm_paradox=["a"], fm_paradox_small=["b"])
    assert found() == "fm_paradox"
    plan(tmp_path, dp_cda_mine=["a"])
    assert found() == "dp_cda"
    for several in ({"table1": [], "table3": []}, {"table1": [], "fedpsf": []}, {"mine": []}, {"offsites": []}):
        plan(tmp_path, **several)
        assert found() == "paper"
    (tmp_path / "study.yaml").write_text("name: own")
    assert found() == "study"


def test_bundled_data_and_shared_sentences_are_said(tmp_path):
    run = make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=2)
    edit_json(run / "run.json", lambda run: run["data"].update(mine={"origin": "bundled"}))
    edit_json(run / "metrics.jsonl", lambda line: line["global"]["stereoset"].update(shared_sentences=86))
    bundled, shared = said(tmp_path)
    assert bundled.startswith("1 of 2 runs used the bundled mini data, an invented world")
    assert shared.startswith("StereoSet SS: up to 86 sentences of the report items stand in probe items too")


def test_runs_without_item_scores_are_counted(tmp_path):
    make_run(tmp_path / "a")
    assert caveats(load_study([tmp_path]), []) == [
        "No paired tests on items for 1 of 1 runs: their folder scores/ is missing."
    ]
    edit_json(tmp_path / "a" / "metrics.jsonl", lambda line: [line["global"].pop(name) for name in OF_ITEMS])
    assert caveats(load_study([tmp_path]), []) == []
