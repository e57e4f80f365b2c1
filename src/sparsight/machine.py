"""What this machine offers: its processor, the cores and the memory that this process may use.

Every figure is None where the system does not tell: another operating system, a `/proc` that cannot be read, no control groups.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Memory:
    """Bytes of memory.

    Attributes
    ----------
    total, available : int or None
        Of the system: all, and what can be given without swapping.
    limit : int or None
        The tightest limit of the control groups around this process.
    """

    total: int | None
    available: int | None
    limit: int | None


def processor() -> str | None:
    """The processor's name as the system has it."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine() or None


def usable_cores() -> float | None:
    """Cores that this process may keep busy: those it is bound to, or the quota of its control groups if that is less."""
    try:
        bound: float | None = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        bound = os.cpu_count()
    shares = [share for group in control_groups() if (share := _quota(group)) is not None]
    if bound is None:
        return min(shares, default=None)
    return min([bound, *shares])


def memory() -> Memory:
    """The system's memory, and the limit for this process."""
    limits = [limit for group in control_groups() if (limit := _number(group / "memory.max")) is not None]
    try:
        import psutil

        found = psutil.virtual_memory()
        total, available = int(found.total), int(found.available)
    except Exception:  # psutil is missing, or cannot read what it needs: it raises what it met
        return Memory(_pages("SC_PHYS_PAGES"), _pages("SC_AVPHYS_PAGES"), min(limits, default=None))
    return Memory(total, available, min(limits, default=None))


def control_groups() -> list[Path]:
    """Folders of the control groups (version 2) around this process, the innermost first."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    name = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if name is None:
        return []
    group = CGROUPS / name.strip("/")
    return [place for place in (group, *group.parents) if place == CGROUPS or CGROUPS in place.parents]


def _quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no limit
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _pages(name: str) -> int | None:
    try:
        count, size = os.sysconf(name), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return count * size if min(count, size) > 0 else None  # -1: not known
