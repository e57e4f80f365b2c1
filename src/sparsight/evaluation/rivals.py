"""Other engines to time decode steps of: llama.cpp on the same GGUF file, and the plain Hugging Face graph.

A rival is filled by a real prefill and then steps at one context for as long as it is asked to: each step attends to that many tokens,
and the cache is put back after it. So the steps of several rivals can be interleaved, and slow spells of a machine meet all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import ConfigError
from ..models import ALIASES, Anatomy, LoadedModel
from ..models.packaged import _find
from .bytes import kv_bytes
from .rival_llama_cpp import LlamaCpp, import_llama_cpp
from .rival_transformers import Transformers

WEIGHTS = ("bf16", "int8", "int4")


class Rival(Protocol):
    """An engine whose decode steps are timed.

    Attributes
    ----------
    runtime : str
        "llama.cpp" or "transformers".
    weights : str
        "bf16", "int8" or "int4".
    details : dict
        Versions, threads, what weights and KV are really stored in.
    """

    runtime: str
    weights: str
    details: dict[str, Any]

    def prepare(self, ids: Sequence[int]) -> None:
        """Fill the cache with these tokens by a prefill; the context is then `len(ids)`, see `at`.

        Raises
        ------
        ConfigError
            If there are none, more than the rival was made for, or one outside the vocabulary.
        """
        ...

    def at(self, context: int) -> None:
        """Cut the cache to `context - 1` tokens, so that a step attends to `context` tokens, its own included.

        To go down costs next to nothing, to go up again may cost a prefill of what is missing.

        Raises
        ------
        ConfigError
            If `context` is below 1 or above what was prepared.
        """
        ...

    def step(self) -> None:
        """Decode the token at `context - 1` of the prepared ones, with its logits, and put the cache back."""
        ...

    def timed_step(self) -> float:
        """As `step`; seconds of the decoding alone."""
        ...

    def logits(self) -> np.ndarray:
        """Logits of the last step, `(vocab,)` float32."""
        ...

    def bytes_per_token(self, context: int) -> float:
        """Bytes that a step reads: weights as they are stored, and keys and values of `context` tokens."""
        ...

    def close(self) -> None:
        """Give back memory and temporary files."""
        ...


class Engine(Protocol):
    """What a rival steps with; it trusts its arguments."""

    details: dict[str, Any]
    weight_bytes: float

    def prepare(self, ids: list[int]) -> None: ...

    def hold(self, length: int) -> None:
        """Have the first `length` of the prepared tokens in the cache."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """Around `decode`: what has to be set for it, and is no part of it."""
        ...

    def decode(self, token: int) -> None:
        """The part of a step that is timed."""
        ...

    def put_back(self) -> None:
        """Take back what `decode` appended."""
        ...

    def logits(self) -> np.ndarray: ...

    def close(self) -> None: ...


class SteppingRival:
    """A `Rival` made of an `Engine`: checks the arguments, chooses the token, holds the watch."""

    def __init__(self, runtime: str, weights: str, engine: Engine, anatomy: Anatomy, context: int) -> None:
        self.runtime, self.weights, self.details = runtime, weights, engine.details
        self._engine, self._anatomy, self._limit = engine, anatomy, context
        self._ids: list[int] = []
        self._token = -1
        self._stepped = self._closed = False

    def prepare(self, ids: Sequence[int]) -> None:
        if self._closed:
            raise ConfigError(f"the {self.runtime} rival is closed; make another")
        ids = [int(token) for token in ids]
        if not 1 <= len(ids) <= self._limit:
            raise ConfigError(
                f"the {self.runtime} rival was made for 1 to {self._limit} tokens, got {len(ids)}; make it with a larger context"
            )
        strange = [token for token in ids if not 0 <= token < self._anatomy.vocab_size]
        if strange:
            raise ConfigError(
                f"token {strange[0]} is outside the vocabulary of {self._anatomy.vocab_size}; give ids of the model's own tokenizer"
            )
        self._ids = []
        self._engine.prepare(ids)
        self._ids = ids
        self.at(len(ids))

    def at(self, context: int) -> None:
        if not 1 <= context <= len(self._ids):
            raise ConfigError(
                f"the {self.runtime} rival can step at contexts of 1 to {len(self._ids)} tokens, the number prepared, got {context}; "
                "prepare more"
            )
        self._engine.hold(context - 1)
        self._token, self._stepped = self._ids[context - 1], False

    def step(self) -> None:
        self.timed_step()

    def timed_step(self) -> float:
        if not self._ids:
            raise ConfigError(f"the {self.runtime} rival has no tokens to step from; call prepare first")
        with self._engine.running():
            start = time.perf_counter()
            self._engine.decode(self._token)
            seconds = time.perf_counter() - start
        self._engine.put_back()
        self._stepped = True
        return seconds

    def logits(self) -> np.ndarray:
        if not self._stepped:
            raise ConfigError(f"the {self.runtime} rival made no step at this context yet; call step first")
        return self._engine.logits()

    def bytes_per_token(self, context: int) -> float:
        kv = sum(kv_bytes(self._anatomy, layer, context, context) for layer in range(self._anatomy.layers))
        return float(self._engine.weight_bytes + kv)

    def close(self) -> None:
        self._ids, self._stepped, self._closed = [], False, True
        self._engine.close()


def llama_cpp_rival(loaded: LoadedModel, weights: str, threads: int, context: int, flash_attention: bool) -> Rival:
    """llama.cpp on the GGUF file that the model was loaded from, with an F16 cache.

    Parameters
    ----------
    loaded : LoadedModel
        Loaded by an alias whose package carries a whole GGUF file, or by the path of a `.gguf` file.
    weights : str
        "int4" leaves a file of four-bit weights as it is and makes Q4_1 of others; "int8" and "bf16" make Q8_0 and BF16 of it, in a
        temporary folder that `close` removes. `details` says what was done.
    threads : int
    context : int
        The most tokens that will be prepared.
    flash_attention : bool

    Raises
    ------
    ConfigError
        If there is no GGUF file, llama-cpp-python is not installed or broken, or an argument is out of range.
    ModelError
        If llama.cpp cannot read or requantise the file.
    """
    _check(weights, threads, context)
    path = _gguf_of(loaded)
    engine = LlamaCpp(import_llama_cpp(), path, weights, threads, context, flash_attention)
    return SteppingRival("llama.cpp", weights, engine, loaded.anatomy, context)


def transformers_rival(loaded: LoadedModel, weights: str, threads: int, context: int) -> Rival:
    """The model as transformers runs it, with `sdpa` attention and a `DynamicCache`.

    Parameters
    ----------
    loaded : LoadedModel
        In bfloat16 on the CPU; used as it is, not copied.
    weights : str
        "bf16" only.
    threads : int
        Set around each of its calls, and what was set before is set again after it.
    context : int
        The most tokens that will be prepared.

    Raises
    ------
    ConfigError
        If an argument is out of range or the model is of another dtype or on another device.
    """
    _check(weights, threads, context)
    model = loaded.model
    if weights != "bf16":
        raise ConfigError(f"the transformers rival runs weights 'bf16' only, got {weights!r}; leave it out or use bf16")
    if model.dtype != torch.bfloat16 or model.device.type != "cpu":
        raise ConfigError(
            f"the transformers rival needs a model in bfloat16 on the cpu, got {str(model.dtype).removeprefix('torch.')} on "
            f"{model.device.type}; load it with dtype=torch.bfloat16, device='cpu'"
        )
    return SteppingRival("transformers", weights, Transformers(loaded, threads), loaded.anatomy, context)


def _check(weights: str, threads: int, context: int) -> None:
    if weights not in WEIGHTS:
        raise ConfigError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}; use the number of cores or fewer")
    if context < 1:
        raise ConfigError(f"context must be at least 1 token, got {context}")


def _gguf_of(loaded: LoadedModel) -> Path:
    packaged = ALIASES.get(loaded.name)
    if packaged is not None and not packaged.pieces:
        return _find(loaded.name, packaged.package, packaged.file)
    path = Path(loaded.name).expanduser()
    if packaged is None and path.suffix.lower() == ".gguf" and path.is_file():
        return path
    whole = [alias for alias, model in ALIASES.items() if not model.pieces]
    raise ConfigError(
        f"llama.cpp needs a GGUF file, and '{loaded.name}' is none; load the model by the path of a .gguf file or as {' or '.join(whole)}"
    )
