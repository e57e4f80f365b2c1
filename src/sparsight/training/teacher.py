"""The teacher: a dense forward of the frozen model, in which each layer is shown once with the sampled rows' true attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models import LoadedModel
from ..runtime import Handler, attached
from ..tokens import Rows


class _Capture(Handler):
    """Keeps queries of sampled rows and all keys of the wanted layers."""

    def __init__(self, anatomy, wanted: set[int], positions: Tensor) -> None:
        super().__init__(anatomy)
        self.wanted = wanted
        self.positions = positions
        self.queries: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}

    def attend(self, layer, queries, keys, values, mask, dense):
        if layer in self.wanted:
            self.queries[layer] = queries[:, :, self.positions].clone()
            self.keys[layer] = keys.clone()
        return dense()


class Lesson:
    """One chunk of text as the teacher saw it: for every wanted layer the sampled query rows and all keys.

    Memory is rows x length, never length squared.
    """

    def __init__(self, capture: _Capture) -> None:
        self._capture = capture

    @property
    def positions(self) -> Tensor:
        """`(rows,)` sampled positions."""
        return self._capture.positions

    def rows(self, layer: int) -> Rows:
        """The layer's `Rows`: queries `(1, query_heads, rows, head_dim)`, keys `(1, kv_heads, length, head_dim)`."""
        capture = self._capture
        queries, keys = capture.queries[layer].float(), capture.keys[layer].float()
        return capture.rows(layer, queries, keys, None, capture.positions, keep=capture.positions)

    def every_row(self, layer: int) -> Rows:
        """`Rows` of all tokens, without queries: what importance keys are made from."""
        keys = self._capture.keys[layer].float()
        return self._capture.rows(layer, keys[:, :, :0], keys, None, torch.arange(keys.shape[2], device=keys.device))


def teach(
    loaded: LoadedModel,
    ids: Tensor,
    positions: Tensor,
    layers: tuple[int, ...],
    producers: tuple[int, ...],
    per_query_head: bool = False,
) -> Lesson:
    """Run the frozen model densely over `(length,)` ids and keep what a predictor learns from.

    Parameters
    ----------
    loaded : LoadedModel
    ids : (length,) int64
    positions : (rows,) int64
        Query rows to keep.
    layers : layers whose queries and keys are kept
    producers : layers whose entering residual is kept
    per_query_head : whether each query head chooses for itself
    """
    device = loaded.model.device
    capture = _Capture(loaded.anatomy, set(layers), positions.to(device))
    capture.per_query_head = per_query_head
    with torch.no_grad(), attached(loaded.model, capture, producers):
        loaded.anatomy.base()(ids[None].to(device), use_cache=False)
    return Lesson(capture)


def sample_positions(length: int, rows: int, earliest: int, generator: torch.Generator) -> Tensor:
    """`rows` distinct sorted positions in [earliest, length), or all of them if there are fewer."""
    room = length - earliest
    return torch.randperm(room, generator=generator)[: min(rows, room)].sort().values + earliest
