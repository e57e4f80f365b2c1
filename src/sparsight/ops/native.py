"""The compiled kernels: whether they are there, and the level of instruction sets they run at.

`SPARSIGHT_ISA` forces a level (`portable`, `avx2`, `avx512`); otherwise the best that this machine has is used.
"""

from __future__ import annotations

import os
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

from ..errors import ConfigError

VARIABLE = "SPARSIGHT_ISA"
BANDWIDTH_BYTES = 256 << 20
"""Read to measure the bandwidth: more than a processor's caches hold."""

_MOST_THREADS = 1024
_BANDWIDTH_TRIES = 3


@cache
def library() -> ModuleType | None:
    """The extension module, or None where the package was installed without it."""
    try:
        return import_module("sparsight._native")
    except ImportError:
        return None


def need_library() -> ModuleType:
    """The extension module.

    Raises
    ------
    ConfigError
        If the package was installed without it.
    """
    found = library()
    if found is None:
        raise ConfigError(
            "the native library is not built; install sparsight again where a C++ compiler is found, or use --runtime hf"
        )
    return found


def levels() -> list[str]:
    """Levels that this machine has, the best last."""
    return need_library().levels()


def level() -> str:
    """The level in use.

    Raises
    ------
    ConfigError
        If `SPARSIGHT_ISA` names one that this machine does not have.
    """
    known = levels()
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked and asked not in known:
        raise ConfigError(f"{VARIABLE}={asked} is not a level of this machine; it has {', '.join(known)}: choose one of these, or unset it")
    return asked or known[-1]


@lru_cache(maxsize=8)
def pool(threads: int) -> Any:
    """The pool of that many threads, the caller's among them; the same one for everybody who asks.

    Raises
    ------
    ConfigError
    """
    if not 1 <= threads <= _MOST_THREADS:
        raise ConfigError(f"threads must be from 1 to {_MOST_THREADS}, got {threads}")
    return need_library().Pool(threads)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory together: the best of a few tries, half a second in all.

    Raises
    ------
    ConfigError
    """
    return need_library().read_bandwidth(level(), pool(threads), BANDWIDTH_BYTES, _BANDWIDTH_TRIES)
