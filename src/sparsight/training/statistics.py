"""Second moments of post-rotary queries and keys, and the low-rank bases that follow from them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models import LoadedModel
from ..ops import attention_weights, selectable_tokens
from ..tokens import Geometry, Rows
from .teacher import sample_positions, teach

KEY_FOCUS = 0.9
"""Share of a key's weight that follows the attention it gets; the rest is the same for all."""


class Statistics:
    """Covariances of queries and keys a layer and KV head, over chunks of mixed lengths, weighted by where there is a choice.

    Only tokens outside sinks and window are chosen, so a query weighs as much as the attention mass it has there, and a key partly as much
    as the attention it gets there: an error on a key that nobody looks at is harmless. Queries of a group are pooled. Keys are centred
    within each chunk: a constant added to all keys changes no order. All chunks count alike, whatever their length.

    Beside them, for published methods that weigh nothing: mean sizes of channels and the plain covariance of keys, sinks left out.

    Parameters
    ----------
    geometry : Geometry
    sinks, window : int
    seed : int
        Handed to methods that start from random weights.
    """

    def __init__(self, geometry: Geometry, sinks: int, window: int, seed: int) -> None:
        shape = (geometry.layers, geometry.kv_heads, geometry.head_dim, geometry.head_dim)
        self.geometry, self.sinks, self.window, self.seed = geometry, sinks, window, seed
        self._queries = torch.zeros(shape, dtype=torch.float64)
        self._keys = torch.zeros(shape, dtype=torch.float64)
        self._query_sizes = torch.zeros(shape[:-1], dtype=torch.float64)
        self._key_sizes = torch.zeros(shape[:-1], dtype=torch.float64)
        self._plain_keys = torch.zeros(shape, dtype=torch.float64)
        self._bases: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, rows: Rows) -> None:
        """Add one chunk's sampled rows at `rows.layer`."""
        tokens = rows.keys.shape[2]
        selectable = selectable_tokens(rows.positions, rows.first, tokens, self.sinks, self.window)
        mass = attention_weights(rows.queries, rows.keys, rows.visible, rows.scaling)[0] * selectable[0]
        kv_heads = self.geometry.kv_heads
        attracted = mass.unflatten(0, (kv_heads, -1)).mean(dim=(1, 2)).double().cpu()
        attracted = attracted / attracted.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        even = torch.ones(kv_heads, tokens, dtype=torch.float64)
        even[:, : self.sinks] = 0
        weight = (KEY_FOCUS * attracted + (1 - KEY_FOCUS) * even / even.sum(dim=-1, keepdim=True))[..., None]
        k = rows.keys[0].double().cpu()
        plain = k[:, self.sinks :]
        self._key_sizes[rows.layer] += plain.abs().mean(dim=1)
        plain = plain - plain.mean(dim=1, keepdim=True)
        self._plain_keys[rows.layer] += plain.transpose(1, 2) @ plain / plain.shape[1]
        k = k - (k * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
        self._keys[rows.layer] += k.transpose(1, 2) @ (k * weight)
        q = rows.queries[0].double().cpu().reshape(kv_heads, -1, self.geometry.head_dim)
        self._query_sizes[rows.layer] += q.abs().mean(dim=1)
        chosen = mass.sum(dim=-1).double().cpu().reshape(kv_heads, -1, 1)
        self._queries[rows.layer] += q.transpose(1, 2) @ (q * chosen) / q.shape[1]
        self._bases.pop(rows.layer, None)

    def key_basis(self, layer: int, rank: int) -> Tensor:
        """W_k, `(kv_heads, head_dim, rank)` float32."""
        return self._basis(layer)[1][..., :rank].float()

    def query_basis(self, layer: int, rank: int) -> Tensor:
        """W_q, `(kv_heads, head_dim, rank)` float32; (q W_q).(k W_k) approximates q.k."""
        return self._basis(layer)[0][..., :rank].float()

    def heavy_channels(self, layer: int, rank: int) -> Tensor:
        """Channels with the largest mean |q_c k_c| over all pairs of a query and a key, `(kv_heads, rank)` int64, the heaviest first."""
        sizes = self._query_sizes[layer] * self._key_sizes[layer]
        return sizes.argsort(dim=-1, descending=True, stable=True)[..., :rank]

    def key_components(self, layer: int, rank: int) -> Tensor:
        """First principal components of the keys, orthonormal columns `(kv_heads, head_dim, rank)` float32."""
        return torch.linalg.eigh(self._plain_keys[layer])[1].flip(-1)[..., :rank].float()

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


def gather_statistics(
    loaded: LoadedModel, chunks: list[Tensor], sinks: int, window: int, seed: int, rows: int = 256, row_tokens: int = 262_144,
    progress: Callable[[int, int, str], None] | None = None,
) -> Statistics:
    """Statistics of all full-attention layers over the chunks, `(length,)` ids each.

    At most `rows` queries of a chunk are sampled, fewer from long ones, so that rows x length stays below `row_tokens`.
    """
    geometry = Geometry.of(loaded.anatomy)
    statistics = Statistics(geometry, sinks, window, seed)
    generator = torch.Generator().manual_seed(seed)
    for number, ids in enumerate(chunks):
        if progress is not None:
            progress(number, len(chunks), "calibration")
        count = max(min(rows, row_tokens // len(ids)), 1)
        positions = sample_positions(len(ids), count, min(2 * (sinks + window), len(ids) // 2), generator)
        lesson = teach(loaded, ids, positions, geometry.full_attention, ())
        for layer in geometry.full_attention:
            statistics.add(lesson.rows(layer))
    return statistics
