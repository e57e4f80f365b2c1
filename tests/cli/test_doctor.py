"""`sparsight doctor`: the report, the same as JSON, and the exit code."""

import json

import pytest

from sparsight.cli import doctor
from sparsight.doctor import Examination, Problem, examine
from sparsight.ops import native


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))


def test_says_what_is_here_and_what_will_be_used(sparsight, tmp_path):
    code, out, err = sparsight("doctor")
    assert (code, err) == (0, "")
    cache = str(tmp_path / "cache")
    for part in ("processor", "GB/s with 1", "kernels", "transformers", "smollm2-135m-foresight", cache, "will be used native"):
        assert part in out, part


def test_json(sparsight, tmp_path):
    file = tmp_path / "out" / "doctor.json"
    code, out, _ = sparsight("doctor", "--json", file)
    assert code == 0 and out.startswith("sparsight ")
    written = json.loads(file.read_text())
    code, out, _ = sparsight("doctor", "--json", "-")
    printed = json.loads(out)
    assert written.keys() == printed.keys() and written["format"] == 1 and written["usable"] is True
    assert written["packages"] == printed["packages"] and written["used"] == printed["used"]


def test_problems_come_last_and_decide_the_exit_code(sparsight, monkeypatch):
    facts = examine(measure=False).facts
    found = [Examination(facts, ())]
    monkeypatch.setattr("sparsight.doctor.examine", lambda: found[0])
    assert sparsight("doctor")[:2] == (0, "\n".join([*doctor.lines(found[0].as_json())]) + "\n")
    assert sparsight("doctor")[1].endswith("\nno problems\n")
    found[0] = Examination(facts, (Problem("a thing is slow", "make it fast"),))
    code, out, _ = sparsight("doctor")
    assert code == 0 and out.endswith("\nnote: a thing is slow; make it fast\n")
    found[0] = Examination(facts, (Problem("a thing is gone", "bring it back", True), *found[0].problems))
    code, out, err = sparsight("doctor")
    assert (code, err) == (2, "") and out.splitlines()[-2:] == ["broken: a thing is gone; bring it back", "note: a thing is slow; make it fast"]


def test_what_is_not_known_is_said(sparsight, monkeypatch):
    """A machine that tells nothing."""
    facts = examine(measure=False).facts
    facts |= {"sparsight": None, "packages": [], "extras": [], "models": [], "predictors": [], "bandwidth": {}}
    facts["processor"] = {"name": None, "cores": None, "usable_cores": None}
    facts["memory"] = {"total": None, "available": None, "limit": 1 << 30}
    facts["kernels"] |= {"present": False, "why_not": "it is not built"}
    facts["torch"] = {"threads": None, "gpus": [], "why_not": "ImportError: torch"}
    facts["cache"] = {"folder": None, "bytes": 0, "files": 0, "why_not": "it is not known"}
    monkeypatch.setattr("sparsight.doctor.examine", lambda: Examination(facts, ()))
    code, out, _ = sparsight("doctor")
    assert code == 0 and "None" not in out and "? free of ?, limit 1.07 GB" in out and "none: it is not built" in out


def test_a_file_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused("doctor", "--json", tmp_path / "file" / "doctor.json")
