"""What every way of choosing tokens has in common: a config, an importance, an index of importance keys, a registration line.

A method is one file in this package: a frozen config dataclass, the computation on plain tensors and `@register`. It is found by being
there; nothing else has to be touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops import visible_tokens
from ..registry import Registry
from .pieces import Pieces

if TYPE_CHECKING:
    import numpy as np

    from ..artifacts import Artifact


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model that a method depends on; stored with an artifact and compared when it is loaded."""

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    full_attention: tuple[int, ...]

    @classmethod
    def of(cls, anatomy: Any) -> Geometry:
        """The geometry of a model's anatomy."""
        return cls(**{f.name: getattr(anatomy, f.name) for f in dataclasses.fields(cls)})

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads


@dataclass
class Rows:
    """What one layer knows when it chooses tokens for some query rows. Nothing in it comes from later tokens.

    Attributes
    ----------
    layer : int
    queries : (batch, query_heads, rows, head_dim), after rotary embedding
    keys : (batch, kv_heads, tokens, head_dim), after rotary embedding
    index : Index or None
        The importance keys, those of all tokens up to the last row among them when importance is asked for.
    positions : (rows,) int, index in the cache of each row's own token
    first : (batch,) int, index of the first real token
    scaling : float, of the model's attention logits
    choosers : int, heads that choose: the KV heads, or the query heads where each has a choice of its own
    residual : layer -> (batch, rows, hidden), the residual entering a producer layer
    model_norm : (layer, residual) -> the model's own normalised input of that layer's attention
    model_query : (layer, residual) -> (batch, query_heads, rows, head_dim), that layer's own query before rotary embedding
    rotate : (batch, heads, rows, head_dim) -> the same with rotary embedding at the rows' positions
    previous_attention : () -> (batch, query_heads, rows, tokens) or None, true attention of the layer before
    hidden : (batch, choosers, rows, tokens) bool or None, tokens that were ruled out before importance is asked for
    """

    layer: int
    queries: Tensor
    keys: Tensor
    index: Index | None
    positions: Tensor
    first: Tensor
    scaling: float
    choosers: int
    residual: Callable[[int], Tensor]
    model_norm: Callable[[int, Tensor], Tensor]
    model_query: Callable[[int, Tensor], Tensor]
    rotate: Callable[[Tensor], Tensor]
    previous_attention: Callable[[], Tensor | None] = lambda: None
    hidden: Tensor | None = None

    @property
    def visible(self) -> Tensor:
        """`(batch, 1, rows, tokens)` bool; a chooser each where some are hidden."""
        visible = visible_tokens(self.positions, self.first, self.keys.shape[2])
        return visible if self.hidden is None else visible & ~self.hidden

    @property
    def own_keys(self) -> Tensor:
        """`(batch, kv_heads, rows, head_dim)`: the keys of the rows' own tokens."""
        return self.keys[:, :, self.positions]


class Index:
    """Importance keys of all layers; they follow the KV cache through append, crop and reordering of the batch."""

    def extend(self, rows: Rows) -> None:
        """Append, at `rows.layer`, the importance keys of the rows' own tokens, which follow those held."""
        raise NotImplementedError

    def crop(self, length: int, keys: Callable[[int], Tensor]) -> None:
        """Keep the first `length` tokens; `keys(layer)` gives the true keys that remain, `(batch, kv_heads, length, head_dim)`."""
        raise NotImplementedError

    def take_batch(self, indices: Tensor) -> None:
        """Keep `indices` (sequences,) of the batch dimension, in that order."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        raise NotImplementedError


class Selector(nn.Module):
    """Decides which cached tokens each KV head reads at this step.

    Parameters
    ----------
    config : Config
        The method's settings.
    geometry : Geometry

    Attributes
    ----------
    artifact : Artifact
        Of a method that was saved or read: where it stands, and what it was made from.
    training_shingles : (hashes,) uint64 or None
        Of the text that it was made from.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    artifact: Artifact
    training_shingles: np.ndarray | None

    learned: ClassVar[bool] = False
    """Whether the method has weights that come from an artifact."""
    needs_previous_attention: ClassVar[bool] = False
    selects: ClassVar[bool] = True
    scores_logits: ClassVar[bool] = False
    """Whether importance is in the scale of attention logits, so that it can be compared with a threshold."""
    has_pages: ClassVar[bool] = False
    """Whether `page_candidates` gives something."""
    wraps: ClassVar[bool] = False
    """Whether it goes around an evictor: `NAME+EVICTOR`."""
    permanent: ClassVar[bool] = False
    """Whether what is not chosen is gone for good: an evictor (`evictor.Evictor`)."""
    deployable: ClassVar[bool] = True
    """False for oracles, which look at what they are meant to save."""

    def __init__(self, config: Any, geometry: Geometry) -> None:
        super().__init__()
        self.config = config
        self.geometry = geometry

    @property
    def settings(self) -> str:
        """All settings in one line, for what a number depends on."""
        return str(self.config)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that select. Layer 0 is dense; layers with a sliding window are left alone."""
        return tuple(layer for layer in self.geometry.full_attention if layer > 0)

    def producer(self, layer: int) -> int | None:
        """The layer whose entering residual this layer's importance is computed from, or None when it uses the true query."""
        return None

    @property
    def producers(self) -> tuple[int, ...]:
        """All producer layers."""
        return tuple(sorted({p for p in map(self.producer, self.layers) if p is not None}))

    @property
    def history(self) -> tuple[int, ...]:
        """Producer layers whose residual of every token the index is made from, not only that of the rows that choose."""
        return ()

    def new_index(self) -> Index | None:
        """An empty index of importance keys, or None for a method that keeps none."""
        return None

    def importance(self, rows: Rows) -> Tensor:
        """Importance of every cached token, `(batch, choosers, rows, tokens)`; only its order matters."""
        raise NotImplementedError

    def pieces(self) -> Pieces | None:
        """What the method is made of, for runtimes that compute it themselves; None for a method that is not made of these pieces."""
        return None

    def page_candidates(self, rows: Rows, selectable: Tensor, size: int, share: float) -> Tensor | None:
        """Tokens of the pages that are worth scoring, `(batch, choosers, rows, tokens)` bool; None for a method that scores by no keys."""
        return None

    def index_bytes(self, layer: int, tokens: float) -> float:
        """Bytes of importance keys one decode step reads at `layer`, with `tokens` in the cache."""
        return 0.0

    def state_bytes(self, layer: int, tokens: float) -> float:
        """Bytes kept beside the KV cache at `layer`."""
        return self.index_bytes(layer, tokens)

    def extra_weight_elements(self) -> int:
        """Elements of the model's own weights read a second time in each step."""
        return 0

    def parameter_count(self) -> int:
        """Parameters of the predictor."""
        return sum(p.numel() for p in self.parameters())


REGISTRY: Registry[Selector] = Registry(__package__, "--select")
register, methods, method, make_config = REGISTRY.register, REGISTRY.methods, REGISTRY.method, REGISTRY.make_config


def create(name: str, geometry: Geometry, **settings: Any) -> Selector:
    """An untrained selector.

    Parameters
    ----------
    name : str
        `METHOD`, or `WRAPPER+METHOD` for a wrapper around an evictor.
    geometry : Geometry
    **settings
        Fields of the method's config; of a wrapper and its base together.
    """
    outer, plus, inner = name.partition("+")
    cls = method(outer)
    if cls.wraps != bool(plus):
        bases = [known for known, other in methods().items() if other.permanent and not other.wraps]
        raise ConfigError(
            f"{outer!r} goes around an evictor; write {outer}+{bases[0]} (or +{', +'.join(bases[1:])})"
            if cls.wraps
            else f"{outer!r} goes around no other method, but {name!r} asks for that; write {outer}, or kvcrush+{inner}"
        )
    if cls.wraps:
        if not method(inner).permanent or method(inner).wraps:
            raise ConfigError(f"{outer!r} goes around an evictor, and {inner!r} is none; see `sparsight info` for those there are")
        own = {f.name for f in dataclasses.fields(cls.Config)}
        base = create(inner, geometry, **{key: value for key, value in settings.items() if key not in own})
        wrap: Any = cls  # a wrapper takes what it goes around as well
        selector: Selector = wrap(make_config(outer, {key: value for key, value in settings.items() if key in own}), geometry, base)
        selector.name = name  # type: ignore[misc]  # of this one, whose name has two parts
    else:
        selector = cls(make_config(name, settings), geometry)
    if selector.selects and not selector.layers:
        raise ConfigError(f"{name!r} has nothing to choose: no layer of this model but the first attends over the whole context")
    return selector


def typed_settings(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`Registry.typed_settings`, for a wrapper those of both."""
    outer, _, inner = name.partition("+")
    if not inner:
        return REGISTRY.typed_settings(name, pairs)
    own = {f.name for f in dataclasses.fields(method(outer).Config)}
    of_outer = [pair for pair in pairs if pair.partition("=")[0].strip() in own]
    rest = [pair for pair in pairs if pair not in of_outer]
    return {**REGISTRY.typed_settings(inner, rest), **REGISTRY.typed_settings(outer, of_outer)}


def stacked_parameter(*shape: int) -> nn.Parameter:
    """A float32 parameter of zeros, to be filled by `initialise` or from an artifact."""
    return nn.Parameter(torch.zeros(shape))
