"""One tester for all methods: rows of a made-up model, and what every selector must do with them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsight.ops import select_tokens, selectable_tokens
from sparsight.tokens import Geometry, Index, Rows, Selector, create

GEOMETRY = Geometry(layers=6, query_heads=6, kv_heads=2, head_dim=16, hidden_size=96, full_attention=tuple(range(6)))
PARTLY_SLIDING = dataclasses.replace(GEOMETRY, full_attention=(1, 2, 5))
SINKS, WINDOW = 2, 4


def rotate(states: Tensor, positions: Tensor) -> Tensor:
    """A rotation of channel pairs by position, `(batch, heads, rows, width)` and `(rows,)`."""
    angle = positions[:, None] * torch.linspace(1.0, 0.01, states.shape[-1] // 2)
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


class FakeModel:
    """Plain tensors in place of a model: keys, queries and residuals of `tokens` tokens, the same for the same seed."""

    def __init__(
        self, geometry: Geometry = GEOMETRY, batch: int = 2, tokens: int = 48, seed: int = 0, padding: int = 0
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        shape = (geometry.layers, batch)
        self.geometry, self.tokens = geometry, tokens
        self.queries = torch.randn(*shape, geometry.query_heads, tokens, geometry.head_dim, generator=g)
        self.keys = torch.randn(*shape, geometry.kv_heads, tokens, geometry.head_dim, generator=g)
        self.residuals = torch.randn(*shape, tokens, geometry.hidden_size, generator=g)
        wide = geometry.query_heads * geometry.head_dim
        self.query_weights = torch.randn(geometry.layers, geometry.hidden_size, wide, generator=g) * 0.2
        self.first = torch.tensor([padding] + [0] * (batch - 1))
        self.choosers = geometry.kv_heads

    def rows(self, selector: Selector, layer: int, positions: Tensor, tokens: int | None = None) -> Rows:
        """`Rows` at `positions`, with a cache of the first `tokens` tokens and an index built over it at once."""
        tokens = tokens or self.tokens
        index = selector.new_index()
        if index is not None:
            if selector.history and layer != selector.layers[0]:
                index.extend(self.view(selector.layers[0], torch.arange(tokens), tokens))
            index.extend(self.view(layer, torch.arange(tokens), tokens))
        return self.view(layer, positions, tokens, index)

    def view(self, layer: int, positions: Tensor, tokens: int, index: Index | None = None) -> Rows:
        """`Rows` at `positions` with a cache of the first `tokens` tokens."""
        return Rows(
            layer=layer,
            queries=self.queries[layer][:, :, positions],
            keys=self.keys[layer][:, :, :tokens],
            index=index,
            positions=positions,
            first=self.first,
            scaling=self.geometry.head_dim**-0.5,
            choosers=self.choosers,
            residual=lambda p: self.residuals[p][:, positions],
            model_norm=lambda p, residual: residual / residual.norm(dim=-1, keepdim=True),
            model_query=lambda i, residual: (
                (residual @ self.query_weights[i]).unflatten(-1, (self.geometry.query_heads, -1)).transpose(1, 2)
            ),
            rotate=lambda states: rotate(states, positions),
            previous_attention=lambda: self.attention(layer - 1, positions, tokens),
        )

    def extend(self, index: Index, selector: Selector, start: int, stop: int) -> None:
        """Show an index the tokens `start` to `stop` at the selector's first two layers."""
        for layer in selector.layers[:2]:
            index.extend(self.view(layer, torch.arange(start, stop), stop))

    def spliced(self, length: int, other: FakeModel) -> FakeModel:
        """The first `length` tokens of this one, then those of another."""
        both = FakeModel(self.geometry, tokens=self.tokens)
        for part in ("keys", "queries", "residuals"):
            mixed = torch.cat([getattr(self, part)[..., :length, :], getattr(other, part)[..., : self.tokens - length, :]], dim=-2)
            setattr(both, part, mixed)
        both.first = self.first
        return both

    def of_batch(self, indices: Tensor) -> FakeModel:
        """The sequences `indices`."""
        some = FakeModel(self.geometry, tokens=self.tokens)
        for part in ("keys", "queries", "residuals"):
            setattr(some, part, getattr(self, part)[:, indices])
        some.first = self.first[indices]
        return some

    def attention(self, layer: int, positions: Tensor, tokens: int) -> Tensor:
        keys = self.keys[layer][:, :, :tokens].repeat_interleave(self.geometry.group, dim=1)
        logits = self.queries[layer][:, :, positions] @ keys.transpose(-1, -2)
        seen = torch.arange(tokens) <= positions[:, None]
        seen = seen & (torch.arange(tokens) >= self.first[:, None, None, None])
        return torch.softmax((logits * self.geometry.head_dim**-0.5).masked_fill(~seen, float("-inf")), dim=-1)


def ready(name: str, geometry: Geometry = GEOMETRY, seed: int = 1, **settings) -> Selector:
    """A selector with weights at random, its int8 scales fitted to keys of a `FakeModel`."""
    selector = create(name, geometry, **settings)
    g = torch.Generator().manual_seed(seed)
    for parameter in selector.parameters():
        # The indexer brings its input to unit variance a channel; what `FakeModel` gives is of unit length.
        parameter.data = torch.randn(parameter.shape, generator=g) * (0.3 if name != "indexer" else 0.1)
    if selector.learned:
        model = FakeModel(geometry)
        everything = {i: model.view(i, torch.arange(model.tokens), model.tokens) for i in selector.layers}
        with torch.no_grad():
            largest = {i: selector.importance_keys(everything[i]).abs().amax(dim=(0, 2)) for i in selector.layers}
        selector.set_key_scales(largest)
    return selector.requires_grad_(False)


def choice(selector: Selector, rows: Rows, budget: int = 12) -> Tensor:
    """Chosen tokens, `(batch, kv_heads, rows, budget)`."""
    selectable = selectable_tokens(rows.positions, rows.first, rows.keys.shape[2], SINKS, WINDOW)
    return select_tokens(selector.importance(rows), rows.visible, selectable, budget)


def assert_same_order(importance: Tensor, rows: Rows, expected: Tensor) -> None:
    """Both `(batch, kv_heads, rows, tokens)` put the visible tokens of each row in the same order.

    Sums of floats differ in their last bits between passes of different shapes; neighbours nearer than that may swap.
    """
    tokens = min(importance.shape[-1], expected.shape[-1])
    visible = rows.visible[..., :tokens].expand_as(importance[..., :tokens])
    ours, theirs = (x[..., :tokens].masked_fill(~visible, float("-inf")) for x in (importance, expected))
    ranked = ours.gather(-1, theirs.argsort(dim=-1, stable=True))
    slack = 1e-4 * float(importance[..., :tokens][visible].std()) if importance.dtype == torch.float32 else 0.0
    shown = ranked > float("-inf")
    steps = torch.where(shown[..., :-1], ranked[..., 1:] - ranked[..., :-1], torch.zeros(()))
    assert (steps >= -slack).all(), float(steps.min())


def state(index: Index, layer: int) -> Tensor:
    """What an index holds of a layer, as one tensor."""
    return index.bounds(layer) if hasattr(index, "bounds") else index.packed(layer)
