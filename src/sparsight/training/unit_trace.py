"""A trace: windows of text, and how important every head and neuron was in each. Resumable, and small: two bytes a score.

A folder with `trace.json` and shards of safetensors. Scores are kept in bfloat16, since gradients need its range more than its digits. Each
window is a prompt and what follows it, scored apart: a choice made from the prompt is meant for what follows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..artifacts import read_bytes, sha256_bytes, write_atomically
from ..errors import ArtifactError, ConfigError, StorageError, TextError
from ..models import LoadedModel
from ..units import UnitGeometry
from ..units.criteria import criterion
from .text import Document, hash_documents, token_stream
from .unit_capture import check_gradients, scores_of
from .windows import chunks, window

KIND, FORMAT = "sparsight-trace", 1
SHARD = 32
INDEX = "trace.json"
LEFTOVERS = ".*.tmp"  # of a kill
PARTS = ("prompt", "rest")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TraceConfig:
    """What is traced.

    Attributes
    ----------
    criteria : tuple of str
    length, prompt : int
        Tokens of a window, and of its beginning.
    examples : int
    seed : int
        Of where in a document its first window begins.
    """

    criteria: tuple[str, ...]
    length: int = 256
    prompt: int = 128
    examples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.criteria:
            raise ConfigError("a trace needs at least one criterion, such as l2")
        for name in self.criteria:
            criterion(name)
        if len(set(self.criteria)) < len(self.criteria):
            raise ConfigError(f"a criterion is named more than once: {', '.join(self.criteria)}")
        if not 1 <= self.prompt < self.length:
            raise ConfigError(f"the prompt must be from 1 to {self.length - 1} of the {self.length} tokens of a window, got {self.prompt}")
        if self.examples < 1:
            raise ConfigError(f"a trace needs at least one example, got {self.examples}")
        if self.seed < 0:
            raise ConfigError(f"the seed must be at least 0, got {self.seed}")


class Trace:
    """A finished trace.

    Attributes
    ----------
    ids : (examples, length) int64
    document : (examples,) int64
        Index of the document that each window begins in.
    criteria : tuple of str
    prompt : int
        Tokens of a window's beginning.
    stated : dict
        All of `trace.json`.
    """

    def __init__(self, folder: Path, stated: dict[str, Any]) -> None:
        self.folder, self.stated, self._shards = folder, stated, stated["shards"]
        self.criteria, self.prompt = tuple(stated["criteria"]), stated["prompt"]
        ids, documents = zip(*((t["ids"], t["document"]) for t in map(self._shard, range(len(self._shards)))), strict=True)
        self.ids, self.document = torch.cat(ids).long(), torch.cat(documents).long()

    @classmethod
    def open(cls, folder: str | Path, loaded: LoadedModel | None = None) -> Trace:
        """Read a trace.

        Raises
        ------
        ArtifactError
            If there is none, it is of another model, unfinished, damaged or newer.
        """
        folder = Path(folder).expanduser()
        stated = _read_index(folder)
        if not stated["complete"]:
            done = len(stated["shards"]) * SHARD
            raise ArtifactError(f"the trace '{folder}' was interrupted after {done} of {stated['examples']} examples; go on with --resume")
        if not stated["shards"]:
            raise ArtifactError(f"the trace '{folder}' is empty; trace some text: sparsight trace --out {folder}")
        if loaded is not None and stated["model_fingerprint"] != loaded.fingerprint:
            raise ArtifactError(
                f"the trace '{folder}' is of the model {stated['model']!r} (fingerprint {stated['model_fingerprint'][:12]}), but came with "
                f"{loaded.name!r} (fingerprint {loaded.fingerprint[:12]}); trace this model"
            )
        return cls(folder, stated)

    def __len__(self) -> int:
        return len(self.ids)

    def scores(self, name: str, part: str, kind: str) -> Tensor:
        """Scores of all examples by a criterion, `(examples, layers, units)` bfloat16.

        Parameters
        ----------
        name : str
        part : {"prompt", "rest"}
        kind : {"heads", "neurons"}

        Raises
        ------
        ConfigError
            If the criterion was not traced.
        """
        if name not in self.criteria:
            raise ConfigError(f"the trace '{self.folder}' has no criterion {name!r}, but {', '.join(self.criteria)}; trace it too")
        return torch.cat([self._shard(i)[f"{kind}.{name}.{part}"] for i in range(len(self._shards))])

    def _shard(self, i: int) -> dict[str, Tensor]:
        data = _shard_data(self.folder, i, self._shards[i])
        if data is None:
            raise ArtifactError(f"'{self.folder / _shard_name(i)}' is missing, truncated or altered; delete the trace and make it again")
        return load_tensors(data)


def write_trace(
    loaded: LoadedModel,
    documents: Sequence[Document],
    out: str | Path,
    config: TraceConfig,
    resume: bool = False,
    progress: Progress | None = None,
) -> Trace:
    """Trace a model on text; a finished trace of the same configuration is taken as it is.

    Parameters
    ----------
    loaded : LoadedModel
    documents : sequence of Document
    out : str or Path
    config : TraceConfig
    resume : bool
        Go on with an interrupted trace of the same configuration; what was damaged since is made again.
    progress : callable, optional
        progress(examples done, examples, note)

    Raises
    ------
    ConfigError, TextError, ArtifactError
    ModelError
        If a score is not finite.
    StorageError
        If the disk has too little room, or is full: what was finished is kept.
    """
    from ..evaluation.evaluate import versions

    out, chosen = Path(out).expanduser(), [criterion(name) for name in config.criteria]
    parts = dict(zip(PARTS, (slice(config.prompt), slice(config.prompt, None)), strict=True))
    if any(c.needs_gradients for c in chosen):
        check_gradients(loaded)
    if config.length > loaded.anatomy.context_length:
        raise TextError(f"length {config.length} is over the context of {loaded.name}, {loaded.anatomy.context_length}; lower --length")
    windows, owners = _windows(loaded, documents, config)
    stated = {
        "kind": KIND,
        "format": FORMAT,
        "model": loaded.name,
        "model_fingerprint": loaded.fingerprint,
        "geometry": asdict(UnitGeometry.of(loaded.anatomy)),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "text_sha256": hash_documents(documents),
        "documents": [d.name for d in documents],
        **asdict(config),
        "criteria": list(config.criteria),
        "versions": versions(),
    }
    shards = _begin(out, stated, resume)
    left = len(windows) - len(shards) * SHARD
    _check_space(out, loaded, config, left)
    if not shards:  # so that the folder is known as a trace, whenever a kill comes
        _write_index(out, {**stated, "shards": [], "complete": False})
    for start in range(len(shards) * SHARD, len(windows), SHARD):
        batch = slice(start, start + SHARD)
        tensors = {"ids": windows[batch].int(), "document": owners[batch].int()}
        found: list[dict[str, Tensor]] = []
        for i, ids in enumerate(windows[batch]):
            if progress is not None:
                progress(start + i, len(windows), documents[int(owners[start + i])].name)
            found.append(scores_of(loaded, ids, chosen, parts))
        tensors |= {key: torch.stack([f[key] for f in found]) for key in found[0]}
        data = save_tensors(tensors)
        write_atomically(out / _shard_name(start // SHARD), data)
        shards.append(sha256_bytes(data))
        _write_index(out, {**stated, "shards": shards, "complete": start + SHARD >= len(windows)})
    return Trace.open(out, loaded)


def _windows(loaded: LoadedModel, documents: Sequence[Document], config: TraceConfig) -> tuple[Tensor, Tensor]:
    """Evenly spread windows and the documents that they begin in.

    No window reaches into another document if they hold that many: some are held out later. Otherwise windows are cut from all text as one.
    """
    ids, owner = token_stream(documents, loaded.tokenizer)
    own = config.length - len(loaded.start_tokens)
    sizes = np.bincount(owner)
    fit = sizes // max(own, 1)
    if own > 0 and fit.sum() >= config.examples:
        first = np.cumsum(sizes) - sizes + np.random.default_rng(config.seed).integers(sizes - fit * own, endpoint=True)
        starts = np.repeat(first, fit) + own * (np.arange(fit.sum()) - np.repeat(np.cumsum(fit) - fit, fit))
        starts = starts[np.arange(config.examples) * len(starts) // config.examples]
    else:
        starts = chunks(ids, own, config.examples)
    stream = torch.from_numpy(ids)
    windows = torch.stack([window(stream, int(s), config.length, loaded.start_tokens) for s in starts])
    return windows, torch.from_numpy(owner[starts].astype(np.int64))


def _begin(out: Path, stated: dict[str, Any], resume: bool) -> list[str]:
    """Hashes of the shards that are there already, up to the first that is damaged."""
    if not (out / INDEX).exists():
        if out.exists() and (not out.is_dir() or set(out.iterdir()) - set(out.glob(LEFTOVERS))):
            raise ArtifactError(f"'{out}' holds something other than a trace; choose a new folder")
        return []
    found = _read_index(out)
    differs = [key for key, value in stated.items() if found.get(key) != value and not (found["complete"] and key == "versions")]
    if differs:
        raise ArtifactError(f"the trace '{out}' was made with another {', '.join(differs)}; use the same arguments, or another --out")
    if not found["complete"] and not resume:
        raise ArtifactError(f"the trace '{out}' was interrupted; go on with --resume, or delete it")
    for leftover in out.glob(LEFTOVERS):
        leftover.unlink(missing_ok=True)
    if found["complete"]:
        return list(found["shards"])
    good = 0
    while good < len(found["shards"]) and _shard_data(out, good, found["shards"][good]) is not None:
        good += 1
    return found["shards"][:good]


def _shard_data(folder: Path, i: int, known: str) -> bytes | None:
    """The content of a shard, if its hash is as known."""
    path = folder / _shard_name(i)
    data = read_bytes(path) if path.is_file() else b""
    return data if sha256_bytes(data) == known else None


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise ArtifactError(f"no trace at '{folder}'; expected a folder that 'sparsight trace' wrote")
    try:
        stated = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is not valid JSON ({error}); trace again into another folder") from error
    if not isinstance(stated, dict) or stated.get("kind") != KIND:
        raise ArtifactError(f"'{path}' does not describe a trace of sparsight; give another folder")
    if type(stated.get("format")) is not int or stated["format"] > FORMAT:
        raise ArtifactError(f"the trace '{folder}' has format {stated.get('format')}, newer than {FORMAT}; upgrade sparsight")
    kinds = {"shards": list, "complete": bool, "criteria": list, "prompt": int, "examples": int, "model": str, "model_fingerprint": str}
    for key, kind in kinds.items():
        if type(stated.get(key)) is not kind:
            raise ArtifactError(f"'{path}': expected {key!r} to be a {kind.__name__}; trace again into another folder")
    return stated


def _write_index(out: Path, stated: dict[str, Any]) -> None:
    write_atomically(out / INDEX, json.dumps(stated, indent=1, ensure_ascii=False) + "\n")


def _check_space(out: Path, loaded: LoadedModel, config: TraceConfig, examples: int) -> None:
    anatomy = loaded.anatomy
    each = 2 * len(PARTS) * len(config.criteria) * anatomy.layers * (anatomy.query_heads + anatomy.intermediate_size) + 4 * config.length
    place = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    needed, free = each * examples / 1e9, shutil.disk_usage(place).free / 1e9
    if needed > free:
        room = f"{examples} examples take {needed:.2g} GB, but '{place}' has {free:.2g} GB free"
        raise StorageError(f"{room}; lower --examples, or name fewer criteria")


def _shard_name(i: int) -> str:
    return f"examples-{i:05d}.safetensors"
