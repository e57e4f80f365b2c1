import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from tests.report.examples import METHODS, REAL, WRITTEN_ANSWERS, token_result, write

from sparsight.report.columns import table
from sparsight.report.comparisons import compare
from sparsight.report.copying import latex, markdown, separated
from sparsight.report.drawing import to_files, to_svg
from sparsight.report.html_page import build_page
from sparsight.report.plots import draw
from sparsight.report.points import LeftOut
from sparsight.report.recall_maps import heat
from sparsight.report.results import read_results
from sparsight.report.styles import styles
from sparsight.report.svg import inline

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&$_x^{2}%"


class Page(HTMLParser):
    """Tags with their attributes, and texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts, self._open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.texts.append((self._open, self.tags[-1][1], data))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Comparisons of a token result with recall by head and names that are markup, and their page."""
    folder = tmp_path_factory.mktemp("results")
    write(folder / "r.json", token_result({**METHODS, EVIL: (0.3, f"Config({EVIL})", 0.3, True)}, heads=True, model=EVIL))
    comparisons = compare(read_results([folder])[0])
    return comparisons, build_page(comparisons, [LeftOut(f"{EVIL}.json", f"is {EVIL}")])


def test_names_are_text_wherever_they_stand(made):
    page = Page(made[1])
    assert sum(tag == "script" for tag, _ in page.tags) == 2 and not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    data = json.loads(next(text for tag, attrs, text in page.texts if attrs.get("type") == "application/json"))
    (about,) = data.values()
    assert any(EVIL in point["title"] for point in about["points"])


def test_the_policy_allows_this_script_and_style_and_nothing_else(made):
    page = Page(made[1])
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    for kind, attrs, text in page.texts:
        if attrs.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert not any("style" in attrs for _, attrs in page.tags)


def test_nothing_is_asked_of_a_host(made):
    links = [value for tag, attrs in Page(made[1]).tags for name, value in attrs.items() if name in ("src", "href", "srcset", "action", "data")]
    assert links and all(link.startswith(("#", "data:")) for link in links)


def test_ids_are_unique_and_references_hold(made):
    tags = Page(made[1]).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = {attrs["href"][1:] for _, attrs in tags if attrs.get("href", "").startswith("#")}
    used |= {name for _, attrs in tags for value in attrs.values() if value for name in re.findall(r"url\(#([^)]+)\)", value)}
    assert used <= set(ids)


def test_each_point_can_be_reached_and_says_what_it_is(made):
    (one,), page = made[0], Page(made[1])
    named = [attrs for _, attrs in page.tags if attrs.get("class") == "point"]
    assert len(named) == 2 * len(one.points) and all(a["role"] == "button" and a["tabindex"] == "-1" for a in named)
    label = next(a["aria-label"] for a in named if "lowrank at 1/8" in a["aria-label"])
    assert re.search(r"\+0\.0275 ± \d\.\d{4} nats a token, 102\.5 MB a token", label)


def test_the_page_is_the_same_each_time(made):
    assert build_page(made[0], [LeftOut(f"{EVIL}.json", f"is {EVIL}")]) == made[1]


def test_recall_by_head_is_a_table_of_its_own(made):
    page = made[1]
    assert "does not choose" in page and '<td class="h20">1.00</td><td class="h0">0.00</td>' in page
    assert "Recall by layer and KV head is not in these files" not in page
    assert heat(made[0][0], "1/8") is not None and heat(made[0][0], "") is None


def test_without_it_the_page_says_how_to_get_it(tmp_path):
    comparisons = compare(read_results([write(tmp_path / "r.json", token_result())])[0])
    assert "Recall by layer and KV head is not in these files" in build_page(comparisons)


@pytest.mark.parametrize("kind", [*REAL, "written"])
@pytest.mark.parametrize("shape", ["wide", "narrow"])
def test_each_kind_is_drawn_with_all_its_points(tmp_path, kind, shape):
    path = REAL[kind] if kind in REAL else write(tmp_path / "w.json", WRITTEN_ANSWERS)
    one = compare(read_results([path])[0])[0]
    svg = inline(to_svg(draw(one, styles(one.methods), shape), "salt"), "p-", shape, "a plot", {i: "name" for i in range(len(one.points))})
    root = ElementTree.fromstring(svg)
    numbers = [int(e.get("data-i")) for e in root.iter() if e.get("class") == "point"]
    assert sorted(numbers) == list(range(len(one.points)))
    assert "style=" not in svg and root.get("class") == f"plot {shape}"
    width, height = map(float, root.get("viewBox").split()[2:])
    rings = [e for e in root.iter() if e.get("class") == "ring"]
    assert all(0 <= float(e.get("cx")) <= width and 0 <= float(e.get("cy")) <= height for e in rings)


def test_files_of_a_plot(made):
    (one,) = made[0]
    found = to_files(draw(one, styles(one.methods)), "salt")
    assert found["png"].startswith(b"\x89PNG") and b"<svg" in found["svg"] and b"<dc:date>" not in found["svg"]
    assert found == to_files(draw(one, styles(one.methods)), "salt")


def test_latex(made):
    text = latex(table(made[0][0]))
    lines = text.splitlines()
    assert lines[0].startswith(r"\begin{tabular}{llr") and (lines[1], lines[3], lines[-2]) == (r"\toprule", r"\midrule", r"\bottomrule")
    row = next(line for line in lines if line.startswith("lowrank & 1/8"))
    assert r"+0.0275 $\pm$ 0." in row and r"102.5" in row and r"25.0\%" in row and row.endswith(r" \\")
    evil = next(line for line in lines if "alert" in line)
    assert r"\$\_x\textasciicircum{}\{2\}\%" in evil and evil.count(" & ") == row.count(" & ")


def test_markdown(made):
    lines = markdown(table(made[0][0])).splitlines()
    assert lines[0].startswith("| method | budget | Δ NLL, nats |") and lines[1].startswith("| :--- | :--- | ---: |")
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert any(r"\<img src=x" in line for line in lines)


def test_separated_values_are_numbers_as_they_were(made):
    shown = table(made[0][0])
    for separator in ",\t":
        rows = list(csv.DictReader(io.StringIO(separated(shown, separator)), delimiter=separator))
        row = next(r for r in rows if (r["method"], r["budget"]) == ("lowrank", "1/8"))
        point = next(p for p in made[0][0].points if (p.method, p.budget) == ("lowrank", "1/8"))
        assert (float(row["nll_delta"]), float(row["low"]), float(row["high"])) == (point.value, *point.interval)
        assert float(row["bytes_per_token"]) == point.bytes and row["pareto"] == "1" and len(rows) == len(shown.body)


def test_no_cell_is_taken_for_a_formula(tmp_path):
    methods = {**METHODS, "=cmd()": (0.3, "Config()", 0.3, True), "-1+1": (0.3, "Config2()", 0.3, True)}
    one = compare(read_results([write(tmp_path / "r.json", token_result(methods))])[0])[0]
    text = separated(table(one))
    assert "\n'=cmd(),1/4" in text and "\n'-1+1,1/4" in text
