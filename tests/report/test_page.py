"""The page: tables that a screen reader can read, marks beside colours, nothing from outside, everything escaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from fedbias_plugin.report.findings import Finding, FindingGroup, key_findings
from fedbias_plugin.report.page import Contents, html_page
from fedbias_plugin.report.table_model import Cell, Column, Row, Table

HOSTILE = "<script>alert(1)</script>&\"'"
VOID = {"meta", "br", "link", "img", "hr"}


class Tree(HTMLParser):
    """Tags with their attributes in order, the text below each, and whether every tag is closed where it must be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[list[str]] = []
        self._open: list[tuple[str, int]] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append([])
        if tag not in VOID:
            self._open.append((tag, len(self.tags) - 1))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, number in self._open:
            self.texts[number].append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> list[str]:
        found = zip(self.tags, self.texts, strict=True)
        return [" ".join("".join(text).split()) for (name, _), text in found if name == tag]


def table(**changes: Any) -> Table:
    cells = (
        Cell(3.5, 0.25, (3.0, 4.0), 3, is_best=True, paper=4.25, agrees=True),
        Cell(2.0, is_unsound=True, asides=(("LMS", 55.0), ("ICAT", 50.5)), paper=1.0, agrees=False),
    )
    columns = (Column("ΔCrowS", "delta_crows", "3B"), Column("ΔSS", "delta_ss", "3B"))
    found = Table(
        "t", "A table", "What it shows.", ("model", "algorithm"), columns, (Row(("m", "FedAvg"), cells),), ("A note.",)
    )
    return replace(found, **changes)


def contents(**changes: Any) -> Contents:
    empty = Contents("One run.", [], [("runs", "1")], "", [], [], [], [], [], None, [])
    return replace(empty, **changes)


def page(**changes: Any) -> Tree:
    return Tree(html_page(contents(**changes)))


def test_the_page_has_a_language_a_skip_link_and_a_policy_that_forbids_everything_but_its_own_style() -> None:
    tree = page()
    assert tree.all("html") == [{"lang": "en"}]
    assert {"class": "skip", "href": "#main"} in tree.all("a")
    assert {"id": "main"} in tree.all("main")
    (policy,) = [meta["content"] for meta in tree.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not [tag for tag, _ in tree.tags if tag in ("script", "link", "img", "iframe")]


def test_links_of_the_contents_lead_to_places_of_the_page() -> None:
    tree = page(tables=[table(), table()], findings=[FindingGroup("a", "b", (Finding("c"),))])
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert {link["href"][1:] for link in tree.all("a")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_heads_of_columns_groups_and_rows_say_what_they_head() -> None:
    heads = page(tables=[table()]).all("th")
    assert [head["scope"] for head in heads] == ["colgroup", "col", "col", "col", "col", "row", "row"]
    assert heads[0]["colspan"] == "2"


def test_a_cell_shows_value_spread_lms_the_paper_and_a_mark_that_is_no_colour() -> None:
    cells = page(tables=[table()]).text("td")
    assert "3.50 ± 0.25 [3.00, 4.00] ✓ paper 4.25, agrees" in cells
    assert "2.00† LMS 55.0, ICAT 50.5 ✗ paper 1.00, differs" in cells
    assert page(tables=[table()]).text("strong") == ["3.50"]


def test_rows_of_a_group_share_a_body() -> None:
    rows = tuple(Row((str(number), ""), (Cell(), Cell()), group) for number, group in enumerate("aabba"))
    assert len(page(tables=[table(rows=rows)]).all("tbody")) == 3 + 1  # and the facts'


def test_wide_tables_scroll_by_themselves_and_with_the_keyboard() -> None:
    boxes = [one for one in page(tables=[table()]).all("div") if one.get("class") == "scroll"]
    assert len(boxes) == 2
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-labelledby"] for box in boxes)


def test_verdicts_are_words_beside_their_marks() -> None:
    verdicts = ("agrees", "disagrees", "cannot be told")
    group = FindingGroup("Claims", "", tuple(Finding("text", verdict=verdict) for verdict in verdicts))
    found = [text for text in page(findings=[group]).text("li") if text.endswith("text")]
    assert found == ["✓ agrees text", "✗ disagrees text", "? cannot be told text"]


def test_everything_from_files_is_escaped() -> None:
    cell = Cell(text=HOSTILE)
    hostile = Table(
        "h", HOSTILE, HOSTILE, (HOSTILE,), (Column(HOSTILE, HOSTILE, HOSTILE),), (Row((HOSTILE,), (cell,)),), (HOSTILE,)
    )
    group = FindingGroup(HOSTILE, HOSTILE, (Finding(HOSTILE, HOSTILE),))
    tree = page(
        lead=HOSTILE, counts=[("runs", HOSTILE)], paper_note=HOSTILE, findings=[group], tables=[hostile],
        warnings=[HOSTILE], run_warnings=hostile, facts=[(HOSTILE, HOSTILE)],
    )  # fmt: skip
    assert not tree.all("script")
    assert HOSTILE in tree.text("h3")
    assert HOSTILE in tree.text("td")
    assert tree.text("p").count(HOSTILE) >= 5


def test_no_warnings_are_said_to_be_none() -> None:
    assert "None." in page().text("p")
    assert "None." not in page(warnings=["a"]).text("p")


def test_the_style_keeps_figures_whole_in_print() -> None:
    (style,) = page().text("style")
    print_rules = style[style.index("@media print") :]
    assert re.search(r"svg\.panel[^{]*\{ break-inside: avoid", print_rules)
    assert not re.search(r"url\(|@import|@font-face", style)


@pytest.mark.parametrize(("p_value", "told"), [(0.01, 1), (0.2, 0)])
def test_key_findings_count_the_differences_with_a_small_p_and_name_them(p_value: float, told: int) -> None:
    columns = (Column("ΔCrowS", "delta_crows_difference"), Column("p", "delta_crows_p_holm"))
    cells = (Cell(-4.0, ci95=(-6.0, -2.0), is_signed=True), Cell(p_value, is_probability=True))
    (group,) = key_findings([], [table(columns=columns, rows=(Row(("m", "FedAvg"), cells),))])
    (finding,) = group.findings
    assert finding.text == f"A table, told from chance: {told} of 1."
    assert finding.detail == ("m / FedAvg: ΔCrowS -4.00 [-6.00, -2.00], p = 0.010" if told else "")


def test_an_ss_that_means_nothing_is_no_finding() -> None:
    columns = (Column("ΔSS", "delta_ss_difference"), Column("p", "delta_ss_p_holm"))
    cells = (Cell(-4.0, is_unsound=True), Cell(0.001, is_probability=True))
    assert key_findings([], [table(columns=columns, rows=(Row(("m", "a"), cells),))]) == []
