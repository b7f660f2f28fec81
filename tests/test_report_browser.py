"""report.html in a real browser: what it asks for, what it says, and whether it fits.

Needs Chromium (`apt-get install chromium`) and fails without it: `make test-browser` and
`make test-all` run these tests, `make test` does not.
"""

import shutil

import bundles
import pytest
from chromium import Chromium
from test_report_html import HOSTILE, verdict, write_folder

from stars_deploy import files
from stars_deploy.graph.reader import read_graph
from stars_deploy.validation.report import report_html

pytestmark = pytest.mark.browser
TRAINING = {"device": "cpu", "data": "evaluation", "n": 400, "accuracy": 0.75, "spikes": {},
            "T": 4, "accuracy_by_t": [0.25, 0.5, 0.75], "teacher_accuracy": 0.9}  # fmt: skip
OVERFLOW = """[...document.querySelectorAll('body *')].filter(e =>
  e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll') && !e.closest('svg')
).map(e => e.tagName + '.' + e.className)"""
COLOURS = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A bundle with every section, and one of an earlier version with a hostile name."""
    folder = tmp_path_factory.mktemp("pages")
    full = bundles.write_bundle(folder, golden=4)
    files.write_json(full / "training.json", TRAINING)
    graph = read_graph(full / "graph.nir")
    document = verdict(earlier=[verdict("onnx", verdict="fail"), verdict("lava-fixed_pt")])
    (folder / "full.html").write_text(report_html(full, graph, document))
    old, graph = write_folder(folder / "old")
    (folder / "old.html").write_text(report_html(old, graph, verdict(accuracy=None)))
    return {name: folder / f"{name}.html" for name in ("full", "old")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("name", ["full", "old"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_page_fits_and_is_silent(browser, pages, name, scheme, width):
    browser.open(pages[name], width, scheme=scheme)
    assert browser.messages() == []
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [pages[name].resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(OVERFLOW) == []


def test_schemes_differ(browser, pages):
    seen = {}
    for scheme in ("light", "dark"):
        browser.open(pages["full"], 800, scheme=scheme)
        seen[scheme] = browser.evaluate(COLOURS)
    assert seen == {
        "light": ["rgb(26, 29, 33)", "rgb(246, 247, 248)"],
        "dark": ["rgb(231, 233, 235)", "rgb(17, 19, 21)"],
    }


def test_hostile_name_is_text(browser, pages):
    browser.open(pages["old"], 800)
    assert HOSTILE in browser.evaluate("document.querySelector('h1').textContent")
    assert browser.evaluate("document.scripts.length") == 0


def test_printed_tables_are_not_cut(browser, pages):
    """As wide as A4 without its margins, in print: no table is wider than the page."""
    browser.open(pages["full"], 688)
    browser.send("Emulation.setEmulatedMedia", media="print", features=[])
    wide = "[...document.querySelectorAll('table, pre, svg, img')].map(e => e.scrollWidth)"
    assert max(browser.evaluate(wide)) <= 688
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.pdf().startswith(b"%PDF")


def test_the_browser_reports_what_the_tests_look_for(browser, tmp_path):
    """The judge can fail: a page with an error, a request and an element that is too wide."""
    page = tmp_path / "bad.html"
    script = "<script>throw Error('a fault')</script>"
    page.write_text(f'<body><img src="missing.png"><p style="width:3000px">x</p>{script}')
    browser.open(page, 390)
    assert any("a fault" in message for message in browser.messages())
    assert any(url.endswith("missing.png") for url in browser.requests())
    assert browser.evaluate("document.documentElement.scrollWidth") > 390
    assert browser.evaluate(OVERFLOW) == ["P."]


def test_missing_browser_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"):
        Chromium(None)
