"""What a generation will keep in memory, against what is free: said before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers.cache_utils import DynamicCache

from ..errors import ConfigError
from ..machine import control_groups
from ..models import LoadedModel
from .plan import Plan


@dataclass(frozen=True)
class CacheBytes:
    """Bytes that the tokens of a cache take.

    Attributes
    ----------
    kv : int
        Keys and values.
    index : int
        Importance keys, as the selector counts them (`Selector.state_bytes`).
    spare : int
        Room that growing buffers may hold beyond their tokens. Under a plan they grow by half (`ops.GrowingTensor`).
    """

    kv: int
    index: int = 0
    spare: int = 0

    @property
    def total(self) -> int:
        """Bytes at most."""
        return self.kv + self.index + self.spare


def cache_bytes(loaded: LoadedModel, plan: Plan | None, rows: int, tokens: int) -> CacheBytes:
    """Bytes of a cache of `rows` sequences of `tokens` tokens, padding counted; a sliding-window layer holds its window only.

    Parameters
    ----------
    loaded : LoadedModel
    plan : Plan or None
        Dense without one.
    rows, tokens : int
    """
    anatomy = loaded.anatomy
    layers = DynamicCache(config=loaded.model.config).layers
    # A sliding layer keeps the tokens that the next one can see: its window less one.
    windows = [getattr(layer, "sliding_window", tokens + 1) - 1 for layer in layers]
    windows += [tokens] * (anatomy.layers - len(windows))
    row = rows * 2 * anatomy.kv_heads * anatomy.head_dim * loaded.model.dtype.itemsize
    if plan is not None and plan.selector.permanent:
        return _evicted_bytes(plan, rows, tokens, windows, row)
    kv = sum(min(tokens, window) for window in windows) * row
    if plan is None:
        return CacheBytes(kv)
    index = rows * int(sum(plan.selector.state_bytes(layer, tokens) for layer in plan.selector.layers))
    return CacheBytes(kv, index, (kv + index) // 2)


def _evicted_bytes(plan: Plan, rows: int, tokens: int, windows: list[int], row: int) -> CacheBytes:
    """Layers let go one after the other while a prompt is read, so of those that evict one is whole at a time."""
    evictor = plan.selector
    budget = max(budget.while_generating(tokens) for budget in plan.budgets)
    evicting = {layer: min(tokens, evictor.kept_rows(layer, budget) + evictor.config.every) for layer in evictor.layers}
    held = [evicting.get(layer, min(tokens, window)) for layer, window in enumerate(windows)]
    state = rows * int(sum(evictor.state_bytes(layer, count) for layer, count in evicting.items()))
    return CacheBytes(sum(held) * row, state, (tokens + sum(held) // 2) * row)


def available_bytes(device: torch.device) -> int:
    """Bytes free for use on a device.

    On CUDA what the driver reports as free, and what PyTorch has reserved but not given out. Elsewhere what the system can give without
    swapping, and not more than what the limits of this process's control groups (version 2) leave.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limit = _cgroup_bytes()
    system = psutil.virtual_memory().available
    return system if limit is None else min(system, limit)


def _cgroup_bytes() -> int | None:
    """Bytes left under the tightest limit of the control groups around this process; None without a limit."""
    left = [_left_in(place) for place in control_groups()]
    return min((bytes_left for bytes_left in left if bytes_left is not None), default=None)


def _left_in(group: Path) -> int | None:
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
    # Pages of files that were not used lately are given back before anything fails.
    return max(limit - used + int(statistics.get("inactive_file", 0)), 0)


def check_memory(loaded: LoadedModel, plan: Plan | None, rows: int, tokens: int, held: int = 0) -> None:
    """Raise unless a cache of `rows` sequences of `tokens` tokens will fit.

    Parameters
    ----------
    loaded : LoadedModel
    plan : Plan or None
    rows, tokens : int
        Sequences (beams counted), and tokens of the longest with all that may be generated.
    held : int
        Bytes that the cache to go on with has already.

    Raises
    ------
    ConfigError
    """
    needed = max(cache_bytes(loaded, plan, rows, tokens).total - held, 0)
    free = available_bytes(loaded.model.device)
    if needed > free:
        what = "KV cache" if plan is None else "KV cache and importance keys"
        sequences = "1 sequence" if rows == 1 else f"{rows:,} sequences"
        fewer = "" if rows == 1 else "take fewer prompts or beams at a time, "
        raise ConfigError(
            f"{sequences} of {tokens:,} tokens need up to {needed / 1e9:.3g} GB of {what}, but {free / 1e9:.3g} GB are free "
            f"on {loaded.model.device}; {fewer}lower max-new-tokens or shorten the prompt"
        )
