"""What every way of choosing heads and neurons has in common: a config, scores, a registration line.

A unit is a query head or a feed-forward neuron. A method is one file in this package: a frozen config dataclass, the computation on plain
tensors and `@register`. It is found by being there; nothing else has to be touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import Registry
from .pieces import Foreseen, Gated, UnitProducer

if TYPE_CHECKING:
    import numpy as np

    from ..artifacts import Artifact

MODES = ("static", "prompt", "token")
"""One choice for everything, one a prompt, one a decoded token."""


@dataclass(frozen=True)
class UnitGeometry:
    """The sizes of a model that a method depends on; stored with an artifact and compared when it is loaded."""

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    gated: bool = True
    activation: str = "silu"

    @classmethod
    def of(cls, anatomy: Any) -> UnitGeometry:
        """The geometry of a model's anatomy."""
        return cls(**{f.name: getattr(anatomy, f.name) for f in dataclasses.fields(cls)})

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads


@dataclass(frozen=True)
class Scores:
    """Importance of all units, on the CPU in float32; only the order within a layer, or over all, matters.

    Attributes
    ----------
    heads : (..., layers, query_heads)
    neurons : (..., layers, neurons)
    """

    heads: Tensor
    neurons: Tensor

    def row(self, i: int) -> Scores:
        """Those of the `i`-th of a batch."""
        return Scores(self.heads[i], self.neurons[i])


@dataclass(frozen=True)
class Prompt:
    """What is known of prompts once they are processed, each batch first.

    Attributes
    ----------
    magnitudes : Scores
        Root of the mean square, over a prompt's rows, of each head's output vector and each neuron's activation.
    shares : Scores
        The same with each row divided by its norm over all units of the layer first (arXiv:2404.01365).
    inputs : Callable
        layer -> (batch, hidden) float32: mean over the rows of the normalised input of the layer's attention.
    """

    magnitudes: Scores
    shares: Scores
    inputs: Callable[[int], Tensor]


@dataclass
class UnitRows:
    """What is known of some rows when a layer chooses; each row's values come from that row alone.

    Attributes
    ----------
    layer : int
    attention_input : layer -> (rows, hidden) float32
        Normalised input of the attention of this layer or an earlier one.
    ffn_input : () -> (rows, hidden) float32
        Normalised input of the feed-forward part; for neurons only.
    factor : "gate" or "up" -> (rows, neurons) float32
        The activated gate, or up; for neurons only.
    truth : () -> (rows, query_heads, head_dim) or (rows, neurons), float32
        What the units give: for methods that are not deployable, and for measuring.
    positions : (rows,) int64
    """

    layer: int
    attention_input: Callable[[int], Tensor]
    ffn_input: Callable[[], Tensor]
    factor: Callable[[str], Tensor]
    truth: Callable[[], Tensor]
    positions: Tensor


class UnitMethod(nn.Module):
    """Decides which query heads and neurons are computed.

    Parameters
    ----------
    config : Config
        The method's settings.
    geometry : UnitGeometry

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
    trained: ClassVar[bool] = False
    """Whether these weights are trained by gradient."""
    deployable: ClassVar[bool] = True
    """False for what looks at units before they are computed, or at later tokens."""
    has_heads: ClassVar[bool] = True
    """Whether heads are scored; otherwise another method must choose them."""
    gated_only: ClassVar[bool] = False

    def __init__(self, config: Any, geometry: UnitGeometry) -> None:
        super().__init__()
        if self.gated_only and not geometry.gated:
            raise ConfigError(f"{self.name!r} needs a gated feed-forward part, but this model has none; use another --units")
        self.config, self.geometry = config, geometry

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes it can be used in, the one meant first."""
        raise NotImplementedError

    @property
    def producers(self) -> tuple[int, ...]:
        """Layers whose normalised attention input is looked at."""
        return ()

    def given(self, prompt: Prompt | None) -> Scores:
        """Scores for a whole generation, `(batch, layers, units)`; in static mode `prompt` is None and there is no batch."""
        raise NotImplementedError

    def head_scores(self, rows: UnitRows) -> Tensor:
        """Scores of `rows.layer`, `(rows, query_heads)`."""
        raise NotImplementedError

    def neuron_scores(self, rows: UnitRows) -> Tensor:
        """Scores of `rows.layer`, `(rows, neurons)`."""
        raise NotImplementedError

    def mean_scores(self) -> Scores | None:
        """Mean importance on calibration text, by which a budget is spread over layers; None if it is not known."""
        return None

    def cut(self, layer: int, dropped: float) -> float | None:
        """Score below which a share `dropped` of a layer's neurons fell on calibration text; None where neurons are counted instead."""
        return None

    def head_piece(self, layer: int) -> Tensor | Foreseen | None:
        """How a token's scores of a layer's heads are made: the same `(query_heads,)` for all, or foretold; None if no runtime can but this."""
        return None

    def neuron_piece(self, layer: int) -> Tensor | Foreseen | Gated | None:
        """How a token's scores of a layer's neurons are made: the same `(neurons,)` for all, foretold, or from a factor; None as for heads."""
        return None

    def producer_piece(self, layer: int) -> UnitProducer | None:
        """The network that `head_piece` and `neuron_piece` rely on."""
        return None

    def parameter_count(self) -> int:
        """Parameters of the predictor."""
        return sum(p.numel() for p in self.parameters())


REGISTRY: Registry[UnitMethod] = Registry(__package__, "--units")
register, methods, method, make_config = REGISTRY.register, REGISTRY.methods, REGISTRY.method, REGISTRY.make_config


def create(name: str, geometry: UnitGeometry, **settings: Any) -> UnitMethod:
    """An untrained method.

    Parameters
    ----------
    name : str
    geometry : UnitGeometry
    **settings
        Fields of the method's config.
    """
    return method(name)(make_config(name, settings), geometry)


def parameter(*shape: int) -> nn.Parameter:
    """A float32 parameter of zeros, to be filled by training or from an artifact."""
    return nn.Parameter(torch.zeros(shape))
