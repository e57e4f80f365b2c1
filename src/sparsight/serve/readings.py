"""What each token of an answer read, as it was, and what dense attention would have looked at in its place.

Nothing is computed again: the decoder hands over the positions that it read and the queries that attention saw, a decode step each, and the
keys stay from the sequence. The true weights of attention are the softmax of those queries on those keys, computed when they are asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..models import Anatomy
from ..runtime.decoder import DecoderSequence
from ..runtime.decoder.decoder import Step


@dataclass
class Reading:
    """What was read for one answer.

    Attributes
    ----------
    anatomy : Anatomy
    ids : list of int
        Prompt and answer.
    prompt_tokens : int
    layers : tuple of int
        Those that attend over the whole context.
    method, budget : str
    keys : list of (kv_heads, tokens, head_dim)
        A layer each of `layers`.
    reads : list
        A generated token: the positions, by layer of `layers` and KV head, `None` where all were read.
    queries : list of (layers, query_heads, head_dim) float32 or None
        A generated token; None where the prompt was processed in the Hugging Face graph, which hands none over.
    """

    anatomy: Anatomy
    ids: list[int]
    prompt_tokens: int
    layers: tuple[int, ...]
    method: str = "dense"
    budget: str | None = None
    keys: list[Tensor] = field(default_factory=list, repr=False)
    reads: list[list[list[np.ndarray] | None]] = field(default_factory=list, repr=False)
    queries: list[np.ndarray | None] = field(default_factory=list, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        positions = sum(one.nbytes for token in self.reads for layer in token if layer for one in layer)
        queries = sum(one.nbytes for one in self.queries if one is not None)
        return positions + queries + sum(keys.numel() * keys.element_size() for keys in self.keys)

    def add(self, step: Step | None, row: int = 0) -> None:
        """Keep what the step that gave a token has read; None for a prompt that was processed in the graph, densely."""
        heads = self.anatomy.kv_heads
        if step is None:
            self.reads.append([None] * len(self.layers))
            self.queries.append(None)
            return
        layers = [step.reads[layer][row * heads : (row + 1) * heads] for layer in self.layers]
        self.reads.append([None if layer[0] is None else [np.asarray(one, dtype=np.int32) for one in layer] for layer in layers])
        self.queries.append(step.queries[list(self.layers), row])

    def close(self, sequence: DecoderSequence) -> None:
        """Take the keys over when the answer is complete."""
        self.keys = [sequence.stores[layer].keys[:, : sequence.length].clone() for layer in self.layers]

    def attention(self, token: int) -> np.ndarray | None:
        """True weights of attention where generated token number `token` came from.

        Returns
        -------
        (layers, kv_heads, tokens) float32, or None
            The mean over the query heads of a KV head; each sums to 1. None where no queries were handed over.
        """
        queries = self.queries[token]
        if queries is None:
            return None
        length, heads = self.prompt_tokens + token, self.anatomy.kv_heads
        weights = np.empty((len(self.layers), heads, length), dtype=np.float32)
        for i, keys in enumerate(self.keys):
            grouped = torch.from_numpy(queries[i]).view(heads, -1, queries.shape[-1])
            logits = (grouped @ keys[:, :length].float().transpose(1, 2)) * self.anatomy.scaling
            weights[i] = logits.softmax(dim=-1).mean(dim=1).numpy()
        return weights

    def read_mass(self, token: int, weights: np.ndarray) -> np.ndarray:
        """Share of `weights` `(layers, kv_heads, tokens)` that falls on what was read, `(layers, kv_heads)`."""
        mass = np.ones(weights.shape[:2], dtype=np.float32)
        for i, layer in enumerate(self.reads[token]):
            for head, positions in enumerate(layer or ()):
                mass[i, head] = weights[i, head, positions].sum()
        return mass


def reading_bytes(anatomy: Anatomy, layers: int, prompt: int, new: int, budget: int, itemsize: int) -> int:
    """Bytes that a reading may come to hold."""
    keys = layers * anatomy.kv_heads * (prompt + new) * anatomy.head_dim * itemsize
    return keys + new * layers * (4 * anatomy.kv_heads * budget + 4 * anatomy.query_heads * anatomy.head_dim)


class Readings:
    """The last readings, as many as a limit of memory holds.

    Parameters
    ----------
    limit : int
        Bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: OrderedDict[str, tuple[Reading, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, name: str, reading: Reading) -> None:
        """Keep a reading; the ones used longest ago go."""
        size = reading.nbytes
        with self._lock:
            self._held[name] = (reading, size)
            while sum(size for _, size in self._held.values()) > self.limit:
                self._held.popitem(last=False)

    def get(self, name: str) -> Reading | None:
        """A reading that is still there."""
        with self._lock:
            if name not in self._held:
                return None
            self._held.move_to_end(name)
            return self._held[name][0]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        with self._lock:
            return sum(size for _, size in self._held.values())
