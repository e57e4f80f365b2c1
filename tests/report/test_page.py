"""The report in a real browser, headless: what it asks for, both widths, both schemes, keyboard, copying.

Run by `make check-page`. Pictures of it are kept where SPARSIGHT_SCREENSHOTS says, if it says anything.
"""

import os
import shutil
from pathlib import Path

import pytest
from tests.report.examples import METHODS, REAL, token_result, write

from sparsight.cli.main import main

pytestmark = pytest.mark.page

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report of one result with recall by head, one of each other kind, and a file that is left out."""
    folder = tmp_path_factory.mktemp("report")
    many = {**METHODS, **{f"m{i}": (0.02 * i, f"C{i}()", 0.1 + 0.01 * i, True) for i in range(18)}, EVIL: (0.3, "C()", 0.3, True)}
    write(folder / "in" / "main.json", token_result(many, heads=True))
    for name, path in REAL.items():
        shutil.copy(path, folder / "in" / f"{name}.json")
    write(folder / "in" / f"{'long' * 20}.json", "{")
    assert main(["report", str(folder / "in"), "--out", str(folder / "r.html")]) == 0
    return folder / "r.html"


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide-light", "narrow-dark"])
def page(browser, report, request):
    """The page at a width and scheme; it asks for nothing but itself and says nothing on the console."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    found, asked, said = context.new_page(), [], []
    found.on("request", lambda one: asked.append(one.url))
    found.on("console", lambda one: said.append(one.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.goto(report.as_uri())
    yield found
    if folder := os.environ.get("SPARSIGHT_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        found.screenshot(path=Path(folder) / f"report-{request.node.name}.png", full_page=True)
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()] and said == []


def shown(page) -> str:
    """Class of the plots that this width shows."""
    return ".wide" if page.viewport_size["width"] > 640 else ".narrow"


def first_point(page):
    return page.locator(f'figure >> nth=0 >> svg{shown(page)} >> .point[tabindex="0"]')


def test_nothing_goes_beyond_the_edge(page):
    page.click('[data-fold="open"]')
    for summary in page.query_selector_all("details.configuration > summary"):
        summary.click()
    first_point(page).focus()
    page.keyboard.press("Enter")
    width = page.viewport_size["width"]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    for box in page.query_selector_all("figure svg.plot"):
        if box.is_visible():
            edge = box.bounding_box()
            assert edge["x"] >= 0 and edge["x"] + edge["width"] <= width
    other = ".narrow" if shown(page) == ".wide" else ".wide"
    assert page.locator(f"svg{other} >> visible=true").count() == 0 and page.locator(f"svg{shown(page)} >> visible=true").count() >= 7


def test_text_of_plots_can_be_read(page):
    """At least 9 pixels, in the colour of the page's text."""
    page.click('[data-fold="open"]')
    small, colours = page.evaluate(
        """() => { const texts = [...document.querySelectorAll("figure svg.plot text")].filter((t) => t.checkVisibility());
        return [Math.min(...texts.map((t) => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b))),
                [...new Set([...texts.map((t) => getComputedStyle(t).fill), getComputedStyle(document.body).color])]]; }"""
    )
    assert small >= 9 and len(colours) == 1


def test_a_point_is_reached_by_keyboard_and_shows_its_configuration(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('point')"):
            break
    name = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "nats a token" in name and page.inner_text(".brief >> nth=0") == name
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert second != name and page.inner_text(".brief >> nth=0") == second
    page.keyboard.press("End")
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == name
    page.keyboard.press("Enter")
    behind = page.inner_text(".behind >> visible=true")
    for told in ("0" * 64, "1" * 64, "main.json", "transformers 5.23.0", "weights 100.0 MB", "256 tokens", "configuration hash"):
        assert told in behind
    page.keyboard.press("Escape")
    assert page.locator(".behind >> visible=true").count() == 0
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == name


def test_pointing_and_clicking(page):
    point = page.locator(f'figure >> nth=0 >> svg{shown(page)} >> .point[aria-label^="dense"] use')
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
    assert page.inner_text(".brief >> nth=0").startswith("dense: 0 nats a token")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.inner_text(".behind >> visible=true >> h4") == "dense"
    page.click(".behind >> visible=true >> button")
    assert page.locator(".behind >> visible=true").count() == 0


@pytest.mark.parametrize(
    ("kind", "begins", "holds"),
    [
        ("LaTeX", r"\begin{tabular}{llr", r"\textless{}/script\textgreater{}"),
        ("Markdown", "| method | budget | Δ NLL, nats |", "| lowrank | 1/8 | +0.0275 ± "),
        ("CSV", "method,budget,nll_delta,low,high,", "\nlowrank,1/8,0.0274999"),
        ("TSV", "method\tbudget\tnll_delta\tlow\thigh\t", "\nlowrank\t1/8\t0.0274999"),
    ],
)
def test_tables_are_copied(page, kind, begins, holds):
    page.focus(f'.copy >> nth=0 >> [data-copy="{kind}"]')
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text={kind} copied")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith(begins) and holds in text


def test_a_browser_that_does_not_copy_shows_the_text(page):
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click('.copy >> nth=0 >> [data-copy="LaTeX"]')
    assert page.input_value(".copy textarea").startswith(r"\begin{tabular}") and "Ctrl+C" in page.inner_text(".copy >> nth=0")


def test_maps_of_recall_are_chosen_by_keyboard(page):
    select = page.locator(".maps select >> nth=0")
    cells = ".maps .scroll >> nth=0 >> td"
    before = page.locator(cells).all_inner_texts()
    wanted = select.locator("option").all_inner_texts().index("quest at 1/8")
    select.focus()
    page.keyboard.press("Home")
    for _ in range(wanted):
        page.keyboard.press("ArrowDown")
    assert page.inner_text(".maps caption >> nth=0") == "quest at 1/8"
    assert page.locator(cells).all_inner_texts() == ["does not choose", "0.40", "0.20", "1.00", "0.00"] != before
    assert page.locator(cells).nth(3).get_attribute("class") == "h20"


def test_one_method_is_highlighted(page):
    page.select_option("figure >> nth=0 >> select", label="lowrank")
    bright = page.locator(f"figure >> nth=0 >> svg{shown(page)} >> .point:not(.dim)")
    assert bright.count() == 2 and all("lowrank" in bright.nth(i).get_attribute("aria-label") for i in range(2))
    page.select_option("figure >> nth=0 >> select", label="all methods")
    assert page.locator(".dim").count() == 0


def test_links_open_what_they_lead_to(page):
    link = page.locator("nav a").last
    target = link.get_attribute("href")
    assert page.get_attribute(target, "open") is None
    link.focus()
    page.keyboard.press("Enter")
    assert page.get_attribute(target, "open") is not None
    page.click('[data-fold="close"]')
    assert page.locator("details.comparison[open]").count() == 0


def test_names_are_text(page):
    assert page.locator("img").count() == 0 and EVIL in page.text_content("table.figures >> nth=0")
    assert "is not JSON" in page.inner_text(".left-out")


def test_everything_is_printed(page):
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.comparison:not([open])").count() == 0 and page.locator("nav").is_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.comparison:not([open])").count() > 0


def test_with_scripts_off_it_can_be_read(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.is_visible("svg.wide >> nth=0") and page.is_visible("table.figures >> nth=0") and page.is_visible("table.heat >> nth=1")
    assert page.is_hidden(".copy >> nth=0") and page.is_hidden(".choose >> nth=0")
    context.close()
