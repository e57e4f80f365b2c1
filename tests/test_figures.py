"""The figures on the pages are those of the result files, and no row breaks the order that the gate asks for."""

import json

import pytest
from benchmarks import figures
from benchmarks.token_importance.configuration import read_configuration, read_configurations
from benchmarks.token_importance.tables import RESULTS

from sparsight.errors import ConfigError
from sparsight.evaluation import check_gate


@pytest.mark.parametrize("page", figures.pages(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_page_shows_what_the_result_files_hold(page):
    assert page.read_text(encoding="utf-8") == figures.pages()[page], "run: python -m benchmarks.figures"


@pytest.mark.parametrize("file", sorted([*figures.RESULTS.glob("*.json"), *RESULTS.glob("*.json")]), ids=lambda path: path.stem)
def test_stored_results_pass_the_gate(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    if "gate" in result:
        check_gate(result)
    assert result["rows"]


def test_every_stored_result_has_its_configuration():
    known = read_configurations()
    for file in RESULTS.glob("*.json"):
        result = json.loads(file.read_text(encoding="utf-8"))
        if file.stem == "overhead":
            continue
        configuration = known[file.stem]
        assert {row["method"] for row in result["rows"]} == {"dense", *configuration.methods}
        assert set(result["configuration"].get("budgets", configuration.budgets)) == set(configuration.budgets)


@pytest.mark.parametrize(
    ("text", "told"),
    [("- a", "must be a mapping"), ("about: x", "at least about"), ("about: [", "cannot be read as YAML"),
     ("{about: x, budgets: [1/8], methods: {h2o: h2o}}", "a text or tasks"),
     ("{about: x, budgets: [1/8], methods: {h2o: h2o}, text: t, txet: t}", "txet, which is none of")],
)  # fmt: skip
def test_a_configuration_that_cannot_be_read_is_one_line(text, told, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        read_configuration(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="holds no configurations"):
        read_configurations(tmp_path / "none")
