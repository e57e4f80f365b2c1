"""What the doctor finds, on this machine and on bare, odd and broken ones."""

import builtins
import importlib
import json
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from sparsight import machine
from sparsight.doctor import examine, parts
from sparsight.models import ALIASES
from sparsight.ops import native

NEEDS = ["numpy>=2.0,<3", "transformers>=5.0", "nonesuch>=1; extra == 'more'", "numpy>=2; extra == 'less'"]


@pytest.fixture(autouse=True)
def usual(monkeypatch, tmp_path):
    """A quick measurement, a cache that is not the user's, and metadata that do not depend on how the tests are installed."""
    monkeypatch.setattr(native, "BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    say_needs(monkeypatch, NEEDS, ["more", "less"])


def say_needs(monkeypatch, requires, extras=()):
    class Message:
        def get_all(self, key):
            return list(extras) if key == "Provides-Extra" else None

    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    monkeypatch.setattr(metadata, "metadata", lambda name: Message())


def unimportable(monkeypatch, *names):
    """As if these modules were not installed, whether they are loaded or not."""
    real_module, real_import = importlib.import_module, builtins.__import__

    def refuse(name):
        if any(name == lost or name.startswith(lost + ".") for lost in names):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def import_module(name, package=None):
        refuse(name)
        return real_module(name, package)

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0:
            refuse(name)
        return real_import(name, globals, locals, fromlist, level)

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(builtins, "__import__", import_)


def said(found, broken):
    return [problem.what for problem in found.problems if problem.broken == broken]


def test_this_machine(tmp_path):
    found = examine()
    facts = found.facts
    assert found.usable and json.loads(json.dumps(found.as_json()))["usable"] is True
    assert facts["memory"]["total"] > facts["memory"]["available"] > 0 and facts["processor"]["usable_cores"] > 0
    assert facts["kernels"]["level"] in facts["kernels"]["levels"] and facts["used"]["runtime"] == "native"
    assert facts["bandwidth"]["1"] > 0 and facts["used"]["threads"] == facts["torch"]["threads"]
    assert {"smollm2-135m-foresight", "smollm2-135m-gated"} <= {one["folder"] for one in facts["predictors"]}
    assert [model["name"] for model in facts["models"]] == list(ALIASES)
    assert facts["cache"] == {"folder": str(tmp_path / "cache"), "bytes": 0, "files": 0, "why_not": None}
    assert not list(tmp_path.iterdir()), "the question left something behind"


def test_packages_and_extras_are_read_from_the_metadata():
    facts = examine(measure=False).facts
    assert [(one["name"], one["fits"]) for one in facts["packages"]] == [("numpy", True), ("transformers", True)]
    less, more = facts["extras"]
    assert (less["name"], less["missing"]) == ("less", [])
    assert more["missing"] == ["nonesuch>=1"] and more["command"] == "pip install 'sparsight[more]'"


def test_a_package_out_of_its_range_is_broken(monkeypatch):
    say_needs(monkeypatch, ["transformers<5", "numpy>=2.0", "nonesuch>=1"])
    found = examine(measure=False)
    assert not found.usable
    assert said(found, True) == [
        f"transformers {metadata.version('transformers')}, but <5 is needed",
        "nonesuch is not installed, but >=1 is needed",
    ]
    assert found.problems[0].remedy == "pip install 'transformers<5'"


def test_without_metadata(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    for name in ("requires", "metadata", "version"):
        monkeypatch.setattr(metadata, name, missing)
    found = examine(measure=False)
    assert (found.facts["sparsight"], found.facts["packages"], found.facts["extras"]) == (None, [], [])
    assert found.usable and "versions were not compared" in said(found, False)[0]


@pytest.mark.parametrize(
    "error, why", [(ModuleNotFoundError("x", name=parts.EXTENSION), "not built"), (ImportError("undefined symbol: pow"), "undefined symbol")]
)
def test_without_the_native_extension(monkeypatch, error, why):
    real = importlib.import_module

    def import_module(name, package=None):
        if name == parts.EXTENSION:
            raise error
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    found = examine()
    used = found.facts["used"]
    assert found.usable and found.facts["bandwidth"] == {} and (used["runtime"], used["level"]) == ("hf", None)
    assert why in used["why"] and why in said(found, False)[0]


def test_a_level_that_is_forced_and_one_that_is_not_there(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "portable")
    kernels = examine(measure=False).facts["kernels"]
    assert (kernels["forced"], kernels["level"]) == ("portable", "portable")
    monkeypatch.setenv(native.VARIABLE, "avx3")
    found = examine()
    assert not found.usable and "avx3" in said(found, True)[0] and found.facts["used"]["runtime"] == "hf"


def test_a_bare_machine(monkeypatch, tmp_path):
    """No PyTorch, transformers or psutil, no /proc, no affinity: a report all the same."""
    unimportable(monkeypatch, "torch", "transformers", "psutil", "safetensors")
    for name in [name for name in sys.modules if name.startswith("sparsight.") and name.split(".")[1] in ("models", "ops", "artifacts")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("CGROUPS", "OWN_CGROUP", "CPUINFO"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    monkeypatch.setattr("os.sysconf", lambda name: -1)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "")
    found = examine()
    facts = found.facts
    assert facts["processor"] == {"name": None, "cores": None, "usable_cores": None}
    assert facts["memory"] == {"total": None, "available": None, "limit": None}
    assert facts["torch"]["gpus"] == [] and "torch" in facts["torch"]["why_not"]
    assert {"torch", "transformers", "safetensors"} <= {what.split()[0] for what in said(found, True)} and not found.usable
    json.dumps(found.as_json())


def test_psutil_that_cannot_read_its_figures(monkeypatch):
    def fail():
        raise RuntimeError("couldn't find /proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    assert examine(measure=False).facts["memory"]["total"] > 0  # from the number of pages


def test_limits_of_control_groups(monkeypatch, tmp_path):
    group = tmp_path / "groups" / "a" / "b"
    group.mkdir(parents=True)
    (tmp_path / "self").write_text("1:cpu:/old\n0::/a/b\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "self")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert machine.usable_cores() == 4 and machine.memory().limit is None
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("max\n")
    assert machine.usable_cores() == 4 and machine.memory().limit is None
    (group.parent / "cpu.max").write_text("150000 100000\n")
    (group.parent / "memory.max").write_text(f"{1 << 29}\n")
    assert machine.usable_cores() == 1.5 and machine.memory().limit == 1 << 29
    (group / "cpu.max").write_text("nonsense\n")
    monkeypatch.setattr(parts, "torch_facts", lambda: {"threads": 2, "gpus": [], "why_not": None})
    notes = said(examine(measure=False), False)
    assert "2 threads would share 1.5 cores" in notes and any(note.startswith("0.54 GB of memory") for note in notes)


def test_little_memory_is_not_spent_on_a_measurement():
    assert parts.bandwidth([1], 1 << 20) == {} and parts.bandwidth([1], None)["1"] > 0


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "file"))
    found = examine(measure=False)
    assert not found.usable and "is not a folder" in said(found, True)[0] and "SPARSIGHT_CACHE" in found.problems[0].remedy

    def refuse(self, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)  # rights do not stop an administrator
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "new" / "cache"))
    assert said(examine(measure=False), True) == [f"the cache: cannot write in '{tmp_path}': Permission denied"]


def test_what_the_cache_holds(tmp_path):
    (tmp_path / "cache" / "packed").mkdir(parents=True)
    (tmp_path / "cache" / "packed" / "a").write_bytes(b"1234")
    (tmp_path / "cache" / "lost").symlink_to("nowhere")
    cache = parts.cache()
    assert (cache["bytes"], cache["files"], cache["why_not"]) == (4, 1, None)


def test_no_model_and_a_damaged_predictor(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(parts, "files", lambda package: tmp_path)
    for name, text in {"a": "{", "b": "[]", "c": '{"kind": "k", "method": "m", "model_name": "n"}'}.items():
        (tmp_path / "predictors" / name).mkdir(parents=True)
        (tmp_path / "predictors" / name / "config.json").write_text(text)
    found = examine(measure=False)
    assert "no installed package carries a model" in said(found, False)
    assert [what.split(":")[0] for what in said(found, True)] == ["the predictor a", "the predictor b", "the predictor c"]
    assert found.facts["models"][0]["bytes"] is None and "pip install" in found.facts["models"][0]["why_not"]


def test_gpus_are_named(monkeypatch):
    import torch

    class Card:
        name, total_memory = "Some GPU", 80 << 30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Card)
    assert parts.torch_facts()["gpus"] == [{"name": "Some GPU", "memory": 80 << 30}] * 2
