"""How fast a token is decoded: the native decoder, dense and under selectors, and other engines, taking turns at the same context."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..artifacts.files import read_bytes, write_atomically
from ..errors import ConfigError, StorageError, TextError
from ..machine import processor
from ..models import LoadedModel
from ..models.random_shapes import is_random_shape
from ..ops.native import level, read_bandwidth
from ..runtime import Plan
from ..runtime.decoder import Decoder
from ..training.shipped_text import shipped_documents
from ..training.text import Document, hash_documents, token_stream
from .evaluate import versions
from .rivals import Rival, llama_cpp_rival, transformers_rival
from .speed_grid import STEPS, TURNS, SpeedGrid, check_activations_native, check_units_native, make_plans
from .speed_steps import ActivationSteps, Candidate, FilledCache, NativeSteps, RivalSteps, UnitSteps, interleave

FORMAT = 1
BENCHMARK = "speed"
_TOKENS_A_SIGN = 64
# A sign of progress stands for a turn of steps, or for so many tokens prefilled.
_IDENTITY = ("runtime", "weights", "select", "budget")
_RULE = ("sinks", "window", "interval", "pages", "page_share")

Progress = Callable[[int, int, str], None]


def measure_speed(loaded: LoadedModel, grid: SpeedGrid | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Time decode steps of every candidate at every context.

    Parameters
    ----------
    loaded : LoadedModel
        On the CPU. Without a tokenizer tokens are random, and the native decoder's cache holds random numbers.
    grid : SpeedGrid, optional
    progress : callable, optional
        progress(done, total, note)

    Returns
    -------
    dict
        "rows": runtime, weights, select, budget (None for dense), context, threads, ms_per_token (the median), ms_p10, ms_p90,
        bytes_per_token, bandwidth_share (of what the same threads read from memory); for llama.cpp also flash_attention, the faster of both.
        Beside them where and on what this was measured, and "bandwidth" in bytes a second by threads.

    Raises
    ------
    BudgetError, ConfigError, ModelError, ArtifactError, StorageError, TextError
        What the caller can mend is said before anything long is run.
    """
    grid = (grid or SpeedGrid()).settled(loaded)
    plans = make_plans(loaded, grid)
    check_units_native(loaded, grid)
    check_activations_native(loaded, grid)
    ids, text = _tokens(loaded, max(grid.contexts))
    begin = _load_average()
    counter = _Counter(progress, _signs(loaded, grid, len(plans) + len(grid.units) + len(grid.activations)))
    rows: list[dict[str, Any]] = []
    rivals: list[dict[str, Any]] = []
    bandwidth: dict[str, float] = {}
    with _packed_folder(loaded) as folder:
        for threads in grid.threads:
            measured, bandwidth[str(threads)], details = _measure_threads(loaded, grid, plans, threads, ids, counter, folder)
            rows += measured
            rivals += details
    return {
        "format": FORMAT,
        "benchmark": BENCHMARK,
        "model": {
            "name": loaded.name,
            "fingerprint": loaded.fingerprint,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
        },
        "text": text,
        "cache": "random" if loaded.tokenizer is None else "prefill",
        "rule": {name: getattr(grid.rule, name) for name in _RULE},
        "repeats": grid.repeats,
        "counted_steps": grid.repeats * TURNS * STEPS,
        "isa": level(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load_average": {"begin": begin, "end": _load_average()},
        "versions": {**versions(), "llama_cpp": _version("llama_cpp_python")},
        "bandwidth": bandwidth,
        "rivals": rivals,
        "rows": rows,
    }


def check_result_file(path: str | Path) -> None:
    """Raise an error if `write_result` could not write there, or would replace something else than a result of this benchmark.

    Raises
    ------
    ConfigError, StorageError
    """
    path = Path(path)
    if path.exists():
        try:
            ours = path.is_file() and json.loads(read_bytes(path))["benchmark"] == BENCHMARK
        except (ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise ConfigError(f"'{path}' is there and holds no result of this benchmark; choose another --json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror}; choose another --json") from error


def write_result(path: str | Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all, over an older one.

    Raises
    ------
    StorageError
    """
    write_atomically(path, json.dumps(result, indent=1) + "\n")


class _Counter:
    """Signs of progress out of a number known beforehand."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._note = progress, total, 0.0, ""

    def turn(self, signs: float = 1.0) -> None:
        self._done = min(self._done + signs, self._total)
        if self._progress is not None:
            self._progress(round(self._done), self._total, self._note)

    def prefilled(self, tokens: int) -> None:
        self.turn(tokens / _TOKENS_A_SIGN)

    def say(self, note: str) -> None:
        self._note = note
        self.turn(0)


def _signs(loaded: LoadedModel, grid: SpeedGrid, plans: int) -> int:
    longest, windowed = max(grid.contexts), len(loaded.anatomy.full_attention) < loaded.anatomy.layers
    own = 0 if loaded.tokenizer is None else sum(grid.contexts) if windowed else longest
    rivals = 2 * len(grid.weights) * ("llama.cpp" in grid.against) + ("transformers" in grid.against)
    turns = (plans * len(grid.weights) + rivals) * grid.repeats * TURNS * len(grid.contexts)
    return len(grid.threads) * (turns + (own * len(grid.weights) + longest * rivals) // _TOKENS_A_SIGN)


def _tokens(loaded: LoadedModel, count: int) -> tuple[list[int], dict[str, Any]]:
    """So many tokens of the text that ships with the package, or random ones, and what they are."""
    if loaded.tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(loaded.anatomy.vocab_size, (count,), generator=generator)
        return drawn.tolist(), {"source": "random tokens", "seed": 0}
    ids: list[int] = list(loaded.start_tokens)
    used: list[Document] = []
    for document in shipped_documents():
        if len(ids) >= count:
            break
        ids += token_stream([document], loaded.tokenizer)[0].tolist()
        used.append(document)
    if len(ids) < count:
        raise TextError(f"the text that ships has {len(ids)} tokens, but a context of {count} was asked for; choose a shorter --context")
    return ids[:count], {"source": "shipped training text", "documents": len(used), "sha256": hash_documents(used)}


def _measure_threads(
    loaded: LoadedModel,
    grid: SpeedGrid,
    plans: list[tuple[str, Plan | None]],
    threads: int,
    ids: list[int],
    counter: _Counter,
    folder: str | None,
) -> tuple[list[dict[str, Any]], float, list[dict[str, Any]]]:
    """Rows at one number of threads, bytes a second that so many read, and details of the rivals."""
    with ExitStack() as stack:
        rivals: list[tuple[Rival, dict[str, Any]]] = []
        for rival, variant in _open_rivals(loaded, grid, threads):
            stack.callback(rival.close)
            rivals.append((rival, variant))
        counter.say(f"packing weights, {_threads(threads)}")
        decoders = [Decoder(loaded, weights, threads, folder) for weights in grid.weights]
        caches = [FilledCache(decoder, ids, grid.rule.interval, loaded.tokenizer is None) for decoder in decoders]
        candidates: list[Candidate] = [NativeSteps(cache, spec, plan) for cache in caches for spec, plan in plans]
        candidates += [UnitSteps(cache, name, units) for cache in caches for name, units in grid.units]
        candidates += [ActivationSteps(cache, name, method) for cache in caches for name, method in grid.activations]
        candidates += [RivalSteps(rival, **variant) for rival, variant in rivals]
        for rival, _ in rivals:
            counter.say(f"prefill of {len(ids):,} tokens, {rival.runtime} {rival.weights}, {_threads(threads)}")
            _prepare(rival, loaded, ids, counter)
        best, rows = 0.0, []
        for context in sorted(grid.contexts, reverse=True):
            for cache in caches:
                counter.say(f"prefill of {context:,} tokens, native {cache.decoder.format}, {_threads(threads)}")
                cache.at(context, counter.prefilled)
            for candidate in candidates:
                candidate.at(context)
            counter.say(f"steps at {context:,} tokens, {_threads(threads)}")
            best = max(best, read_bandwidth(threads))
            samples = interleave(candidates, grid.repeats * TURNS, STEPS, counter.turn)
            best = max(best, read_bandwidth(threads))
            rows += _faster_variants([_row(*pair, context, threads) for pair in zip(candidates, samples, strict=True)])
    for row in rows:
        row["bandwidth_share"] = row["bytes_per_token"] / (row["ms_per_token"] / 1e3) / best
    order = {weights: i for i, weights in enumerate(grid.weights)}
    rows.sort(key=lambda row: (row["context"], order.get(row["weights"], len(order))))
    return rows, best, [{"runtime": rival.runtime, "weights": rival.weights, "details": rival.details} for rival, _ in rivals]


@contextmanager
def _packed_folder(loaded: LoadedModel) -> Iterator[str | None]:
    """Where packed weights are kept between the numbers of threads: those of a random model are nothing to leave in the user's cache."""
    if not is_random_shape(loaded.name):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sparsight-packed-") as folder:
        yield folder


def _open_rivals(loaded: LoadedModel, grid: SpeedGrid, threads: int) -> Iterator[tuple[Rival, dict[str, Any]]]:
    longest = max(grid.contexts)
    if "transformers" in grid.against:
        yield transformers_rival(loaded, "bf16", threads, longest), {}
    for weights in grid.weights if "llama.cpp" in grid.against else ():
        for flash in (True, False):
            yield llama_cpp_rival(loaded, weights, threads, longest, flash), {"flash_attention": flash}


def _prepare(rival: Rival, loaded: LoadedModel, ids: list[int], counter: _Counter) -> None:
    if rival.runtime != "transformers":
        rival.prepare(ids)
        counter.prefilled(len(ids))
        return
    with _watched(loaded, counter.prefilled):
        rival.prepare(ids)


@contextmanager
def _watched(loaded: LoadedModel, prefilled: Callable[[int], None]) -> Iterator[None]:
    """Tell of the tokens that go through the Hugging Face graph, where a prefill takes minutes."""
    handle = loaded.model.register_forward_pre_hook(lambda _, args: prefilled(args[0].shape[1]))
    try:
        yield
    finally:
        handle.remove()


def _row(candidate: Candidate, samples: Sequence[float], context: int, threads: int) -> dict[str, Any]:
    low, middle, high = (float(ms) for ms in 1e3 * np.percentile(samples, (10, 50, 90)))
    return {
        **candidate.identity,
        "context": context,
        "threads": threads,
        "ms_per_token": middle,
        "ms_p10": low,
        "ms_p90": high,
        "bytes_per_token": candidate.bytes_per_token(context),
        **({"sparsity": candidate.sparsity} if isinstance(candidate, ActivationSteps) else {}),
    }


def _faster_variants(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of rows that stand for the same, the one with the smaller median."""
    best: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in _IDENTITY)
        if key not in best or row["ms_per_token"] < best[key]["ms_per_token"]:
            best[key] = row
    return list(best.values())


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _load_average() -> list[float] | None:
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
