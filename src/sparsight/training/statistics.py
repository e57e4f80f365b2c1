"""Second moments of post-rotary queries and keys, and the low-rank bases that follow from them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models import LoadedModel
from ..tokens import Geometry
from .teacher import sample_positions, teach


class Statistics:
    """Covariances of queries and keys a layer and KV head, over chunks of mixed lengths.

    Queries of a group are pooled. Keys are centred within each chunk: a constant added to all keys changes no order. Sinks are left out
    of the keys. All chunks count alike, whatever their length.

    Parameters
    ----------
    geometry : Geometry
    sinks : int
    seed : int
        Handed to methods that start from random weights.
    """

    def __init__(self, geometry: Geometry, sinks: int, seed: int) -> None:
        shape = (geometry.layers, geometry.kv_heads, geometry.head_dim, geometry.head_dim)
        self.geometry, self.sinks, self.seed = geometry, sinks, seed
        self._queries = torch.zeros(shape, dtype=torch.float64)
        self._keys = torch.zeros(shape, dtype=torch.float64)
        self._bases: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        """Add one chunk: queries `(1, query_heads, rows, head_dim)`, keys `(1, kv_heads, tokens, head_dim)`."""
        q = queries[0].double().cpu().reshape(self.geometry.kv_heads, -1, self.geometry.head_dim)
        k = keys[0, :, self.sinks :].double().cpu()
        k = k - k.mean(dim=1, keepdim=True)
        self._queries[layer] += q.transpose(1, 2) @ q / q.shape[1]
        self._keys[layer] += k.transpose(1, 2) @ k / k.shape[1]
        self._bases.pop(layer, None)

    def key_basis(self, layer: int, rank: int) -> Tensor:
        """W_k, `(kv_heads, head_dim, rank)` float32."""
        return self._basis(layer)[1][..., :rank].float()

    def query_basis(self, layer: int, rank: int) -> Tensor:
        """W_q, `(kv_heads, head_dim, rank)` float32; (q W_q).(k W_k) approximates q.k."""
        return self._basis(layer)[0][..., :rank].float()

    def _basis(self, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self._bases:
            self._bases[layer] = joint_bases(self._queries[layer], self._keys[layer])
        return self._bases[layer]


def joint_bases(query_moments: Tensor, key_moments: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced bases from the SVD of C_q^(1/2) C_k^(1/2); columns in order of importance.

    Parameters
    ----------
    query_moments, key_moments : (kv_heads, head_dim, head_dim)

    Returns
    -------
    W_q, W_k : (kv_heads, head_dim, head_dim)
        With all columns (q W_q).(k W_k) = q.k on the span of the data.
    """
    u, s, vt = torch.linalg.svd(_power(query_moments, 0.5) @ _power(key_moments, 0.5))
    root = s.sqrt()[..., None, :]
    return _power(query_moments, -0.5) @ (u * root), _power(key_moments, -0.5) @ (vt.transpose(-1, -2) * root)


def _power(moments: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(moments)
    values = values.clamp_min(values.amax(dim=-1, keepdim=True) * 1e-8).clamp_min(1e-30)
    return (vectors * values[..., None, :] ** exponent) @ vectors.transpose(-1, -2)


def gather_statistics(loaded: LoadedModel, chunks: list[Tensor], sinks: int, seed: int, rows: int = 256) -> Statistics:
    """Statistics of all full-attention layers over the chunks, `(length,)` ids each."""
    geometry = Geometry.of(loaded.anatomy)
    statistics = Statistics(geometry, sinks, seed)
    generator = torch.Generator().manual_seed(seed)
    for ids in chunks:
        positions = sample_positions(len(ids), rows, min(sinks, len(ids) - 1), generator)
        lesson = teach(loaded, ids, positions, geometry.full_attention, ())
        for layer in geometry.full_attention:
            view = lesson.rows(layer)
            statistics.add(layer, view.queries, view.keys)
    return statistics
