"""What trained predictors share: small hidden layers, and readouts of heads and neuron groups that start at the static mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..registry import positive
from .base import MODES, Prompt, Scores, UnitGeometry, UnitMethod, UnitRows, parameter
from .cuts import Cuts
from .pieces import Foreseen, UnitProducer


@dataclass(frozen=True)
class NetworkConfig:
    """Settings of trained predictors.

    Attributes
    ----------
    width : int
        Hidden units of each network.
    group_size : int
        Neurons that share a score, grouped by how they are active together.
    mode : {"token", "prompt"}
        Whether each token's own hidden state is looked at, or the mean over the prompt.
    criterion : str
        What is predicted (`units.criteria`).
    """

    width: int = 24
    group_size: int = 1
    mode: str = "token"
    criterion: str = "l2"

    def __post_init__(self) -> None:
        positive(self, "width", "group_size")
        if self.mode not in MODES[1:]:
            raise ConfigError(f"a predictor is trained for the mode 'token' or 'prompt', got {self.mode!r}")


class NetworkMethod(UnitMethod):
    """Scores `mean + readout @ silu(input @ x + bias)`, x being the normalised input of a producer layer's attention.

    A score is the importance divided by its mean over the units of the layer. `readout` starts at zero, so that an untrained predictor is
    the static mean.

    Parameters held (float32): `input` (producers, width, hidden), `bias` (producers, width), `head_mean` (layers - 1, query_heads),
    `head_readout` (layers - 1, query_heads, width), `neuron_mean` (layers - 1, groups), `neuron_readout` (layers - 1, groups, width). Layer 0
    is computed whole.
    """

    learned = trained = True

    def __init__(self, config: Any, geometry: UnitGeometry) -> None:
        super().__init__(config, geometry)
        g, width = geometry, config.width
        if config.group_size > g.intermediate_size:
            raise ConfigError(f"setting 'group_size' must be at most the {g.intermediate_size} neurons of a layer, got {config.group_size}")
        if width > 512:
            raise ConfigError(f"setting 'width' must be at most 512, got {width}")
        groups = -(-g.intermediate_size // config.group_size)
        self.input = parameter(len(self.producers), width, g.hidden_size)
        self.bias = parameter(len(self.producers), width)
        self.head_mean = parameter(g.layers - 1, g.query_heads)
        self.head_readout = parameter(g.layers - 1, g.query_heads, width)
        self.neuron_mean = parameter(g.layers - 1, groups)
        self.neuron_readout = parameter(g.layers - 1, groups, width)
        # Floating point, as all that an artifact holds; exact up to 2**24 groups.
        even = torch.arange(g.intermediate_size).div(config.group_size, rounding_mode="floor")
        self.register_buffer("group_of", even.float().repeat(g.layers - 1, 1))
        self.cuts = Cuts(g.layers)

    @property
    def modes(self) -> tuple[str, ...]:
        return (self.config.mode,)

    def producer(self, layer: int) -> int | None:
        """The layer whose input the scores of `layer` are made from; None for a layer that keeps to the mean."""
        raise NotImplementedError

    def initialise(self, means: Scores, groups: Tensor | None, seed: int) -> None:
        """Start at the mean importance.

        Parameters
        ----------
        means : Scores
            `(layers, units)`, each layer divided by its mean over units.
        groups : (layers - 1, neurons) int64, optional
            Group of each neuron.
        seed : int
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            if groups is not None:
                self.group_of.copy_(groups.float())
            self.head_mean.copy_(means.heads[1:])
            self.neuron_mean.copy_(self.pool(means.neurons[1:, None])[:, 0])
            self.input.copy_(torch.randn(self.input.shape, generator=generator) / self.geometry.hidden_size**0.5)

    def pool(self, neurons: Tensor) -> Tensor:
        """Mean over each group, `(layers - 1, rows, groups)` from `(layers - 1, rows, neurons)`."""
        groups = self.neuron_mean.shape[1]
        if self.config.group_size == 1:
            return neurons
        index = self.group_of.long()[:, None].expand(neurons.shape)
        total = torch.zeros(*neurons.shape[:-1], groups, dtype=neurons.dtype, device=neurons.device)
        count = torch.zeros_like(total).scatter_add_(-1, index, torch.ones_like(neurons))
        return total.scatter_add_(-1, index, neurons) / count.clamp_min(1)

    def hidden(self, layer: int, inputs: Callable[[int], Tensor], rows: int) -> Tensor:
        """Hidden activations that the scores of a layer are read from.

        Parameters
        ----------
        layer : int
        inputs : producer -> (rows, hidden)
        rows : int

        Returns
        -------
        (rows, width)
            Zeros where the layer keeps to the mean.
        """
        producer = self.producer(layer)
        if producer is None:
            return torch.zeros(rows, self.config.width, device=self.bias.device)
        i = self.producers.index(producer)
        return F.silu(inputs(producer) @ self.input[i].T + self.bias[i])

    def read_heads(self, layer: int, hidden: Tensor) -> Tensor:
        """Head scores `(rows, query_heads)`."""
        return hidden @ self.head_readout[layer - 1].T + self.head_mean[layer - 1]

    def read_groups(self, layer: int, hidden: Tensor) -> Tensor:
        """Scores of neuron groups, `(rows, groups)`."""
        return hidden @ self.neuron_readout[layer - 1].T + self.neuron_mean[layer - 1]

    def head_scores(self, rows: UnitRows) -> Tensor:
        return self.read_heads(rows.layer, self.hidden(rows.layer, rows.attention_input, len(rows.positions)))

    def neuron_scores(self, rows: UnitRows) -> Tensor:
        hidden = self.hidden(rows.layer, rows.attention_input, len(rows.positions))
        return self.read_groups(rows.layer, hidden)[:, self.group_of[rows.layer - 1].long()]

    def given(self, prompt: Prompt | None) -> Scores:
        """Scores of all layers from the means over the prompt; layer 0, which is computed whole, has ones."""
        heads, neurons = [], []
        for layer in range(1, self.geometry.layers):
            hidden = self.hidden(layer, prompt.inputs, len(prompt.magnitudes.heads))
            heads.append(self.read_heads(layer, hidden))
            neurons.append(self.read_groups(layer, hidden)[:, self.group_of[layer - 1].long()])
        heads, neurons = (torch.stack([torch.ones_like(found[0]), *found], dim=1).float().cpu() for found in (heads, neurons))
        return Scores(heads, neurons)

    def mean_scores(self) -> Scores:
        heads, neurons = self.head_mean.detach().float().cpu(), self.neuron_mean.detach().float().cpu()
        neurons = neurons.gather(1, self.group_of.long().cpu())
        return Scores(*(torch.cat([torch.ones_like(x[:1]), x]) for x in (heads, neurons)))

    def cut(self, layer: int, dropped: float) -> float | None:
        return self.cuts.at(layer, dropped)

    def head_piece(self, layer: int) -> Tensor | Foreseen:
        if self.producer(layer) is None:
            return self.head_mean[layer - 1].detach()
        return Foreseen(self.producer(layer), self.head_readout[layer - 1].detach(), self.head_mean[layer - 1].detach())

    def neuron_piece(self, layer: int) -> Tensor | Foreseen:
        rows = self.group_of[layer - 1].long()
        if self.producer(layer) is None:
            return self.neuron_mean[layer - 1].detach()[rows]
        return Foreseen(self.producer(layer), self.neuron_readout[layer - 1].detach()[rows], self.neuron_mean[layer - 1].detach()[rows])

    def producer_piece(self, layer: int) -> UnitProducer | None:
        if layer not in self.producers:
            return None
        i = self.producers.index(layer)
        return UnitProducer(self.input[i].detach(), self.bias[i].detach())
