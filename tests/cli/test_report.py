import json
import subprocess
import sys

import pytest
from tests.report.examples import token_result, write

from sparsight.evaluation.results import ResultFile


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good.json", token_result())


def test_a_report_and_its_plots(sparsight, good, tmp_path):
    code, out, err = sparsight("report", good, "--out", tmp_path / "new" / "r.html", "--plots", tmp_path / "plots")
    assert code == 0 and "1 comparison, 7 figures" in out and "left out" not in err
    page = (tmp_path / "new" / "r.html").read_text()
    assert page.startswith("<!doctype html>") and "lowrank" in page and "Files left out" not in page
    assert sorted(p.suffix for p in (tmp_path / "plots").iterdir()) == [".png", ".svg"]
    code, out, _ = sparsight("report", good, "--out", tmp_path / "new" / "r.html")
    assert code == 0 and (tmp_path / "new" / "r.html").read_text() == page


def test_bad_files_are_named_and_the_good_ones_reported(sparsight, good, tmp_path):
    write(tmp_path / "bad.json", "{")
    write(tmp_path / "other.json", {"a": 1})
    code, out, err = sparsight("report", tmp_path, "--out", tmp_path / "r.html")
    said = [line for line in err.splitlines() if "left out" in line]
    assert code == 0 and "1 comparison" in out and len(said) == 2
    assert said[0].startswith(f"sparsight: left out {tmp_path / 'bad.json'}: is not JSON")
    page = (tmp_path / "r.html").read_text()
    assert "Files left out" in page and "bad.json" in page and "is not a result of" in page


def test_a_run_that_goes_on_is_provisional(sparsight, tmp_path):
    stated = {**token_result()["configuration"], "chunks": 64}
    file = ResultFile(tmp_path / "r.json", stated)
    for i in range(12):
        file.add(i, {"cluster": f"c{i}", "nll": {"dense": 2.0, "quest|1/8": 2.5 + i / 100}, "share": {"quest|1/8": 0.1}})
    code, _, _ = sparsight("report", tmp_path, "--out", tmp_path / "r.html")
    assert code == 0 and "Provisional: 12 of 64 chunks." in (tmp_path / "r.html").read_text()


def test_nothing_to_report(refused, sparsight, tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "r.html"
    assert "is a folder without any *.json" in refused("report", tmp_path / "empty", "--out", out)
    assert "is not there" in refused("report", tmp_path / "missing", "--out", out)
    assert "is not JSON" in refused("report", write(tmp_path / "a.json", "{"), "--out", out)
    write(tmp_path / "b.json", {"a": 1})
    code, said, err = sparsight("report", tmp_path / "a.json", tmp_path / "b.json", "--out", out)
    assert (code, said) == (2, "") and err.count("left out") == 2 and err.splitlines()[-1].startswith("sparsight: error: nothing to report")
    assert not out.exists()


def test_a_place_that_cannot_be_written(refused, good, tmp_path):
    write(tmp_path / "file", "text")
    assert "'" + str(tmp_path / "file") + "' is a file" in refused("report", good, "--out", tmp_path / "file" / "r.html")
    assert "is a folder" in refused("report", good, "--out", tmp_path)
    assert "is no report of sparsight" in refused("report", good, "--out", good)
    assert json.loads(good.read_text())["rows"]
    assert "--plots" in refused("report", good, "--out", tmp_path / "r.html", "--plots", tmp_path / "file" / "plots")
    assert not (tmp_path / "r.html").exists()


def test_a_full_disk_leaves_the_old_report(refused, sparsight, good, tmp_path, monkeypatch):
    out = tmp_path / "r.html"
    assert sparsight("report", good, "--out", out)[0] == 0
    before = out.read_bytes()
    monkeypatch.setattr("sparsight.cli.progress.bar", quiet_bar)
    monkeypatch.setattr("os.replace", no_space)
    assert "No space left" in refused("report", good, "--out", out)
    assert out.read_bytes() == before and not list(tmp_path.glob(".*"))


def quiet_bar(title):
    from contextlib import nullcontext

    return nullcontext(lambda *_: None)


def no_space(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_what_it_needs_the_error_says_what_to_install(refused, good, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'sparsight[report]'" in refused("report", good, "--out", tmp_path / "r.html")


def test_no_terminal_escapes_reach_the_terminal(sparsight, good, tmp_path):
    write(tmp_path / "bad\x1b[31m.json", "{")
    _, _, err = sparsight("report", tmp_path, "--out", tmp_path / "r.html")
    assert "\x1b" not in err and "bad?[31m.json" in err


def test_help_says_what_it_takes(sparsight):
    code, out, _ = sparsight("report", "--help")
    assert code == 0 and "--out FILE.html" in out and "edited by hand" in out and "exit status" in out


def test_other_verbs_load_neither_matplotlib_nor_the_report():
    code = "import sys, sparsight.cli.main as m; m.build_parser(); import sparsight.report.tables; "
    code += "print(sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
