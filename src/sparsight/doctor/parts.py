"""The parts of the package and what it finds beside itself: kernels, GPUs, models, predictors, the cache.

Each function looks at one thing and gives plain values; what cannot be found out is said in words, not raised.
"""

from __future__ import annotations

import importlib
import json
import os
import uuid
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import SparsightError

EXTENSION = "sparsight._native"
_BANDWIDTH_NEEDS = 1 << 30
# Bytes that must be free for the quarter of it that is read.


def kernels() -> dict[str, Any]:
    """The native extension: built, present (it can be used), levels, level, forced (by SPARSIGHT_ISA), why_not, broken.

    `broken` says that the level that was asked for is not there.
    """
    facts: dict[str, Any] = {"built": False, "present": False, "levels": [], "level": None, "forced": None, "why_not": None, "broken": None}
    try:
        importlib.import_module(EXTENSION)
    except ModuleNotFoundError:
        facts["why_not"] = "it is not built: no C++ compiler was found when the package was installed"
        return facts
    except Exception as error:
        facts |= {"built": True, "why_not": f"it cannot be loaded: {in_words(error)}"}
        return facts
    facts["built"] = True
    try:
        from ..ops import native

        facts |= {"forced": os.environ.get(native.VARIABLE) or None, "present": True, "levels": native.levels()}
        facts["level"] = native.level()
    except SparsightError as error:
        facts["broken"] = str(error)
    except Exception as error:
        facts |= {"present": False, "why_not": f"it cannot be used: {in_words(error)}"}
    return facts


def bandwidth(threads: list[int], available: int | None) -> dict[str, float]:
    """Bytes a second read from memory by numbers of threads; nothing where it cannot be measured or would crowd the memory."""
    if available is not None and available < _BANDWIDTH_NEEDS:
        return {}
    try:
        from ..ops.native import read_bandwidth

        return {str(count): read_bandwidth(count) for count in threads}
    except Exception:
        return {}


def torch_facts() -> dict[str, Any]:
    """What PyTorch says: threads, gpus (name, memory in bytes), why_not."""
    facts: dict[str, Any] = {"threads": None, "gpus": [], "why_not": None}
    try:
        import torch

        facts["threads"] = torch.get_num_threads()
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            found = torch.cuda.get_device_properties(i)
            facts["gpus"].append({"name": found.name, "memory": found.total_memory})
    except Exception as error:
        facts["why_not"] = in_words(error)
    return facts


def importable(name: str) -> str | None:
    """Why a module cannot be imported, or None."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return in_words(error)
    return None


def models() -> list[dict[str, Any]]:
    """Models that installed packages carry, by their short names: name, bytes, why_not."""
    try:
        from ..models.packaged import ALIASES, packaged_files
    except Exception:
        return []
    found = []
    for name in ALIASES:
        try:
            size = sum(file.stat().st_size for file in packaged_files(name))
            found.append({"name": name, "bytes": size, "why_not": None})
        except (SparsightError, OSError) as error:
            found.append({"name": name, "bytes": None, "why_not": in_words(error)})
    return found


def predictors() -> list[dict[str, Any]]:
    """Predictors that come with the package: folder, kind, method, model, why_not."""
    found = []
    for config in sorted(Path(str(files("sparsight") / "predictors")).glob("*/config.json")):
        facts: dict[str, Any] = {"folder": config.parent.name, "kind": None, "method": None, "model": None, "why_not": None}
        try:
            fields = json.loads(config.read_text(encoding="utf-8"))
            facts |= {"kind": fields["kind"], "method": fields["method"], "model": fields["model_name"]}
            if not (config.parent / "model.safetensors").is_file():
                facts["why_not"] = "model.safetensors is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            facts["why_not"] = f"config.json is damaged: {in_words(error)}"
        found.append(facts)
    return found


def cache() -> dict[str, Any]:
    """The cache folder: folder, bytes, files, why_not (it cannot be written)."""
    facts: dict[str, Any] = {"folder": None, "bytes": 0, "files": 0, "why_not": None}
    try:
        from ..models.cache import cache_root

        root = cache_root()
    except Exception as error:
        return facts | {"why_not": f"it is not known: {in_words(error)}"}
    facts["folder"] = str(root)
    for place, _, names in os.walk(root):
        for name in names:
            try:
                facts["bytes"] += (Path(place) / name).stat().st_size
                facts["files"] += 1
            except OSError:
                continue
    facts["why_not"] = _why_not_writable(root)
    return facts


def in_words(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SparsightError) and text else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _why_not_writable(root: Path) -> str | None:
    """Try it in the nearest folder that is there: a cache that was never used is not made for a question."""
    place = next((folder for folder in (root, *root.parents) if folder.exists()), root)
    if not place.is_dir():
        return f"'{place}' is not a folder"
    probe = place / f".sparsight-{uuid.uuid4().hex[:12]}.tmp"
    try:
        probe.write_bytes(b"1")
        probe.unlink()
    except OSError as error:
        return f"cannot write in '{place}': {error.strerror or error}"
    return None
