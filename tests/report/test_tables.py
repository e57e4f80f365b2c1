"""The table of an evaluation."""

import io

import pytest
from rich.console import Console

from sparsight.report import evaluation_table, human_bytes

METHODS = ("dense", "oracle", "foresight", "lowrank", "butler", "quest", "streaming", "random=[odd]")


def row(method: str, budget: str = "1/8", **changes) -> dict:
    return {
        "method": method,
        "budget": budget,
        "length": 1024,
        "chunks": 64,
        "nll_delta": 0.0123,
        "nll_delta_ci": [0.0103, 0.0143],
        "mass_outside": 0.877,
        "set_recall": 0.6543,
        "bytes_per_token": 271_234_567.0,
        "kept_fraction": 1.0604,
        "parameters_fraction": 0.0112,
        **changes,
    }


def printed(rows, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(evaluation_table(rows))
    return console.file.getvalue().splitlines()


def test_has_every_method_once_a_budget_with_its_figures():
    lines = printed([row(m, b) for b in ("1/8", "1/4") for m in METHODS])
    for method in METHODS:
        found = [line for line in lines if line.split()[:1] == [method]]
        assert len(found) == 2
        for figure in ("+0.0123 ± 0.0020", "87.7 %", "65.4 %", "271 MB", "106.0 %", "1.12 %"):
            assert figure in found[0]
    assert [line.strip() for line in lines if "1/" in line] == ["1/8 of 1,024", "1/4 of 1,024"]


def test_rows_of_one_budget_and_length_stand_together():
    rows = [row("a"), row("b", "1/4"), row("c"), row("d", length=2048), row("e", 256)]
    first = [line.split("  ")[0].strip() for line in printed(rows)]
    expected = ["1/8 of 1,024", "a", "c", "1/4 of 1,024", "b", "1/8 of 2,048", "d", "256 of 1,024", "e"]
    assert [word for word in first if word in expected] == expected


def test_values_that_are_not_known_are_dashes():
    nothing = dict.fromkeys(row("dense")) | {"method": "dense"}
    lines = {line.split()[0]: line for line in printed([nothing, row("nan", nll_delta=float("nan"))]) if line.strip()}
    assert lines["dense"].split()[1:] == ["–"] * 6
    assert lines["nan"].split()[1:4] == ["–", "87.7", "%"]


def test_long_names_are_folded_and_kept_whole():
    name = "foresight=" + "folder/" * 12
    text = "".join(line.split("  ")[0].strip() for line in printed([row(name)]))
    assert name in text


def test_ceilings_are_marked():
    assert any("ceiling" in line for line in printed([row("oracle", deployable=False)]))
    assert not any("ceiling" in line for line in printed([row("quest", deployable=True)]))


def test_empty():
    assert printed([])


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345, "12.3 kB"), (999_999, "1.0 MB"), (271.2e6, "271 MB"),
     (2.5e9, "2.5 GB"), (None, "–"), (float("inf"), "–")],
)  # fmt: skip
def test_human_bytes(count, text):
    assert human_bytes(count) == text
