"""`sparsight evaluate --select ... --tasks ...` as a user types it."""

import json

import pytest


@pytest.fixture
def model(shared_data):
    return ["--model", str(shared_data / "stories260k"), "--dtype", "fp32"]


def test_long_tasks_give_a_table_and_a_file_that_is_reused(model, sparsight, tmp_path):
    out = tmp_path / "r.json"
    command = ["evaluate", *model, "--select", "quest", "h2o", "--tasks", "needle-single", "--length", "400", "--limit", "2", "--budget", "1/4"]
    code, first, _ = sparsight(*command, "--json", out)
    assert code == 0 and "needle-single" in first and "h2o" in first
    rows = json.loads(out.read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", "quest", "h2o"] and rows[2]["bytes_kept"] < rows[1]["bytes_kept"]
    code, again, _ = sparsight(*command, "--json", out)
    assert code == 0 and again == first


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks", "needles"], "no task needles; there are needle-single"),
        (["--tasks", "needle-single", "piqa"], "one after the other"),
        (["--tasks", "needle-single", "--adaptive", "top-p"], "--adaptive is for texts"),
        (["--tasks", "needle-single", "--shots", "2"], "--shots is for tasks of multiple choice"),
        (["--tasks", "piqa", "--generate"], "--generate is for long-context tasks"),
        (["--tasks", "needle-single", "--length", "400", "--budget", "20"], "raise --budget"),
        (["--tasks", "key-value", "--length", "400"], "--tasks-data"),
        (["--text", "x.txt", "--limit", "3"], "--limit is for tasks"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, told, model, sparsight):
    code, _, err = sparsight("evaluate", *model, "--select", "quest", *arguments)
    assert code == 2 and told in err.splitlines()[-1] and "Traceback" not in err


def test_the_harness_is_asked_for_by_name(sparsight, byte_model, monkeypatch):
    import sys

    how = ["evaluate", "--model", byte_model, "--dtype", "fp32", "--select", "quest"]
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = sparsight(*how, "--harness", "ruler")
    assert code == 2 and "pip install 'sparsight[eval]'" in err and err.count("\n") == 1
    code, _, err = sparsight(*how, "--harness-folder", "x")
    assert code == 2 and "add --harness TASK" in err
