"""The page in a real browser: nothing loaded, nothing run, every picture there, and it fits a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedbias_plugin.study.report import write_report
from tests.study.devtools import CHROMIUM, Browser, browser
from tests.study.made_up import edit_json, make_run, paper_study

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)")
HOSTILE = "</svg><script>document.title='taken'</script><img src=http://example.org/x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("study")
    for seed in (1, 2, 3):
        for place, scenario in enumerate(("1B2C", "mix-1B2C", "3C", "3B")):
            make_run(runs / f"plain {scenario} {seed}", 60.0 + place + seed, scenario=scenario, seed=seed)
        run = make_run(runs / f"bama {seed}", 51.0 + seed**2 / 9, aggregation="bama", seed=seed)
        edit_json(run / "metrics.jsonl", lambda line: line.update(warnings=[f"{HOSTILE}: said by a run."]))
        make_run(runs / f"<b>hostile {seed}", fed_alg=HOSTILE, model_name_or_path=HOSTILE, seed=seed)
    return write_report([runs], tmp_path_factory.mktemp("reports") / "report")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_loads_nothing_runs_nothing_and_complains_of_nothing(
    chromium: Browser, page: Path, width: int
) -> None:
    chromium.open(page.as_uri(), width, 800)
    said = [event for event in chromium.events if event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled")]
    asked = [
        event["params"]["request"]["url"] for event in chromium.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert chromium.value("document.scripts.length") == 0
    assert chromium.value("document.images.length") == 0
    assert chromium.value("document.title") == "Social bias in federated fine-tuning"


@pytest.mark.parametrize("width", [360, 1200])
def test_every_figure_has_a_size_and_alternative_text(chromium: Browser, page: Path, width: int) -> None:
    chromium.open(page.as_uri(), width, 800)
    panels = chromium.value(
        "[...document.querySelectorAll('figure svg')].map(svg => { const box = svg.getBoundingClientRect(); return "
        "[box.width, box.height, svg.getAttribute('role'), svg.getAttribute('aria-label')] })"
    )
    assert len(panels) >= len(chromium.value("[...document.querySelectorAll('figure')].map(one => one.id)")) >= 7
    for across, down, role, label in panels:
        assert across > 250
        assert down > 100
        assert role == "img"
        assert len(label) > 40
        assert any(letter.isdigit() for letter in label)


def test_a_phone_shows_the_page_without_scrolling_sideways_and_letters_of_ten_pixels(
    chromium: Browser, page: Path
) -> None:
    chromium.open(page.as_uri(), 360, 800)
    assert chromium.value("document.documentElement.scrollWidth") <= 360
    smallest = chromium.value(
        "Math.min(...[...document.querySelectorAll('figure svg')].map(svg => "
        "svg.getBoundingClientRect().width / svg.viewBox.baseVal.width * Math.min(...[...svg.querySelectorAll('text')]"
        ".map(text => parseFloat(getComputedStyle(text).fontSize)))))"
    )
    assert smallest >= 10.5


@pytest.fixture(scope="module")
def paper_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables with eight columns, and the paper's number in every cell."""
    runs = paper_study(tmp_path_factory.mktemp("paper"), ["fedadam"], model_name_or_path="google/gemma-2-2b")
    return write_report([runs], tmp_path_factory.mktemp("reports") / "report")


@pytest.mark.parametrize(("width", "medium"), [(1200, "screen"), (400, "screen"), (690, "print")])
def test_no_table_is_cut_on_a_screen_a_phone_or_paper(
    chromium: Browser, page: Path, paper_page: Path, width: int, medium: str
) -> None:
    for one in (page, paper_page):
        chromium.open(one.as_uri(), width, 800)
        chromium.ask("Emulation.setEmulatedMedia", media=medium)
        cut = chromium.value(
            "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1).map(box => "
            "[box.closest('section').id, box.scrollWidth, box.clientWidth])"
        )
        assert cut == []


def test_no_letters_of_a_figure_stick_out_of_it(chromium: Browser, page: Path) -> None:
    chromium.open(page.as_uri(), 1200, 800)
    outside = chromium.value(
        "[...document.querySelectorAll('figure svg')].flatMap(svg => { const box = svg.getBoundingClientRect(); return "
        "[...svg.querySelectorAll('text')].filter(text => { const own = text.getBoundingClientRect(); return "
        "own.left < box.left - 2 || own.right > box.right + 6 || own.top < box.top - 2 || own.bottom > box.bottom + 2 "
        "}).map(text => text.textContent) })"
    )
    assert outside == []


def test_hostile_names_are_shown_as_the_letters_they_are(chromium: Browser, page: Path) -> None:
    chromium.open(page.as_uri(), 1200, 800)
    assert "<script>document.title='taken'</script>" in chromium.value("document.body.innerText")
