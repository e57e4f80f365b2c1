"""The figures on the pages are those of the result files, and no row breaks the order that the gate asks for."""

import json

import pytest
from benchmarks import figures

from sparsight.evaluation import check_gate


@pytest.mark.parametrize("page", figures.pages(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_page_shows_what_the_result_files_hold(page):
    assert page.read_text(encoding="utf-8") == figures.pages()[page], "run: python -m benchmarks.figures"


@pytest.mark.parametrize("file", sorted(figures.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_stored_results_pass_the_gate(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    if "gate" in result:
        check_gate(result)
    assert result["rows"]
