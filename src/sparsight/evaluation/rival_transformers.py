"""The plain Hugging Face graph as an engine to time: bfloat16, `sdpa`, `DynamicCache`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..models import LoadedModel
from .bytes import ELEMENT

PIECE = 512
"""Tokens prefilled at once, to bound the memory."""


class Transformers:
    """See `sparsight.evaluation.rivals.Engine`.

    Parameters
    ----------
    loaded : LoadedModel
    threads : int
    """

    def __init__(self, loaded: LoadedModel, threads: int) -> None:
        self._model, self._threads = loaded.model, threads
        self._windowed = len(loaded.anatomy.full_attention) < loaded.anatomy.layers
        self._ids = torch.empty(1, 0, dtype=torch.int64)
        self._whole = self._held = self._stepping = None
        self._logits: Tensor | None = None
        self.weight_bytes = float(ELEMENT * loaded.anatomy.weight_elements()["total"])
        self.details = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "threads": threads,
            "attention": loaded.model.config._attn_implementation,
            "cache": "DynamicCache",
            "stored": {"bfloat16": self.weight_bytes},
            "kv": "bfloat16",
        }

    def prepare(self, ids: list[int]) -> None:
        self._ids = torch.tensor([ids])
        self._whole = self._filled(len(ids))

    def hold(self, length: int) -> None:
        tokens = self._ids.shape[1]
        if self._windowed and length < tokens:
            self._held = self._filled(length)  # a sliding window has forgotten what it saw at a shorter context
        else:
            self._held = _twin(self._whole)
            if length < tokens:  # in transformers 5.0 a crop by 0 removes everything
                self._held.crop(length - tokens)
            for layer in self._held.layers:  # decoding from the start would have left them in one piece
                layer.keys, layer.values = layer.keys.contiguous(), layer.values.contiguous()
        self.put_back()

    @contextmanager
    def running(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def decode(self, token: int) -> None:
        out = self._model(torch.tensor([[token]]), past_key_values=self._stepping, use_cache=True, logits_to_keep=1)
        self._logits = out.logits[0, -1]

    def put_back(self) -> None:
        # Appending makes new tensors and leaves the old ones alone. A crop would leave views with holes, which are slower to copy.
        self._stepping = _twin(self._held)

    def logits(self) -> np.ndarray:
        return self._logits.float().numpy()

    def close(self) -> None:
        self._whole = self._held = self._stepping = self._logits = None

    def _filled(self, length: int) -> DynamicCache:
        cache = DynamicCache(config=self._model.config)
        with self.running():
            for start in range(0, length, PIECE):
                piece = self._ids[:, start : min(start + PIECE, length)]
                self._model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache


def _twin(cache: DynamicCache) -> DynamicCache:
    """A cache with the same tensors that can grow without the other's noticing."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
