"""The table of tasks under ways of choosing tokens."""

from rich.console import Console

from sparsight.report.token_task_table import token_task_table

DENSE = {
    "task": "needle-single", "length": 2048, "method": "dense", "budget": "full", "items": 50, "deployable": True,
    "accuracy": 0.9, "accuracy_interval": [0.79, 0.96], "answers_right": 0.9, "given_dense": 1.0, "given_dense_interval": [0.92, 1.0],
    "nll_delta": 0.0, "bytes_per_token": 280_000_000.0,
}  # fmt: skip
ORACLE = {
    **DENSE, "method": "oracle", "budget": "1/8", "deployable": False, "accuracy": 0.84, "accuracy_interval": [0.71, 0.92],
    "answers_right": 0.84, "given_dense": 0.93, "given_dense_interval": [0.82, 0.98], "nll_delta": 0.1234,
}  # fmt: skip


def shown(rows, width=100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(token_task_table(rows))
    return console.export_text()


def line(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_a_block_a_task_and_length():
    text = shown([DENSE, ORACLE, {**DENSE, "task": "lambada", "length": None, "items": 1}])
    lines = [line.rstrip() for line in text.splitlines()]
    for title in (["needle-single", "2,048 tokens, 50 items"], ["lambada", "1 item"]):
        assert lines[lines.index(title[0]) + 1] == title[1]
    assert line(text, "dense").split() == ["dense", "full", "90%", "(79%–96%)", "–", "–", "280", "MB"]
    assert line(text, "oracle").split() == ["oracle", "*", "1/8", "84%", "(71%–92%)", "93%", "(82%–98%)", "+0.123", "280", "MB"]
    assert "a ceiling, not a method" in text and "answers:" not in text and "written:" not in text


def test_columns_that_only_some_results_have():
    text = shown([DENSE, {**ORACLE, "deployable": True, "answers_right": 0.95, "written": 0.71}])
    assert line(text, "oracle").split()[-5:] == ["95%", "71%", "+0.123", "280", "MB"]
    assert "answers:" in text and "written:" in text and "ceiling" not in text


def test_what_is_missing_is_a_dash():
    row = {**ORACLE, "given_dense": None, "given_dense_interval": None, "nll_delta": None, "bytes_per_token": None}
    assert line(shown([row]), "oracle").split() == ["oracle", "*", "1/8", "84%", "(71%–92%)", "–", "–", "–"]


def test_it_fits_a_terminal():
    rows = [DENSE, {**ORACLE, "method": "kvcrush:around=snapkv", "answers_right": 0.95, "written": 0.71}]
    assert max(map(len, shown(rows, 80).splitlines())) <= 80 and "280 MB" in shown(rows, 80)
