"""What every way of reading fewer weights by the activations has in common: a config, cuts, a registration line.

An input of a linear layer that is close to its usual value adds little: with `y = W x + b`, a centre c and a threshold t,

    y = W c + b + sum over the inputs i with |x_i - c_i| > t_i of W[:, i] (x_i - c_i),

where `W c + b` is known beforehand and only the columns of the inputs that are left are read (SCAP, arXiv:2412.07174; TEAL, arXiv:2408.14690).
A method says what centres and thresholds are; `training.activations` finds them on text. A method is one file in this package: a frozen
config dataclass, the computation on plain tensors and `@register`. It is found by being there; nothing else has to be touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from ..artifacts import Artifact

ATTENTION = ("query", "key", "value", "head_output")
FEED_FORWARD = ("gate", "up", "down")
PARTS = ATTENTION + FEED_FORWARD
"""The matrices of a layer, in the order in which a forward meets them."""
INPUTS = (("query", "key", "value"), ("head_output",), ("gate", "up"), ("down",))
"""Those that have the same inputs, together."""


@dataclass(frozen=True)
class ActivationGeometry:
    """The sizes of a model that a method depends on; stored with an artifact and compared when it is loaded."""

    layers: int
    hidden_size: int
    query_width: int
    kv_width: int
    intermediate_size: int
    gated: bool

    @classmethod
    def of(cls, anatomy: Any) -> ActivationGeometry:
        """The geometry of a model's anatomy."""
        return cls(
            anatomy.layers,
            anatomy.hidden_size,
            anatomy.query_heads * anatomy.head_dim,
            anatomy.kv_heads * anatomy.head_dim,
            anatomy.intermediate_size,
            anatomy.gated,
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Matrices of a layer of this model."""
        return tuple(part for part in PARTS if part != "gate" or self.gated)

    def shape(self, part: str) -> tuple[int, int]:
        """Outputs and inputs of a matrix."""
        hidden, wide = self.hidden_size, self.intermediate_size
        return {
            "query": (self.query_width, hidden),
            "key": (self.kv_width, hidden),
            "value": (self.kv_width, hidden),
            "head_output": (hidden, self.query_width),
            "gate": (wide, hidden),
            "up": (wide, hidden),
            "down": (hidden, wide),
        }[part]

    def elements(self, part: str) -> int:
        """Elements of a matrix."""
        outputs, inputs = self.shape(part)
        return outputs * inputs

    def sparsity(self, shares: Mapping[str, float]) -> float:
        """Share of the elements of all matrices, from those of some of them; the others count as read."""
        return sum(share * self.elements(part) for part, share in shares.items()) / sum(map(self.elements, self.parts))


def as_kept(values: Tensor) -> Tensor:
    """Centres or thresholds, `(inputs,)` or `(1,)` float32, in the precision that they are kept in: bfloat16 where each input has its own."""
    return values if values.numel() == 1 else values.bfloat16().float()


@dataclass(frozen=True)
class Cut:
    """Which inputs of a matrix are read for: those further than `threshold` from `centre`.

    Attributes
    ----------
    centre, threshold : (inputs,) or (1,) float32
        A negative threshold keeps everything. Where each input has its own, in the precision of bfloat16.
    """

    centre: Tensor
    threshold: Tensor

    def kept(self) -> Cut:
        """The same in the precision that it is kept and read in."""
        return Cut(as_kept(self.centre), as_kept(self.threshold))

    def keeps(self, x: Tensor) -> Tensor:
        """Which of `x` `(..., inputs)` are read for, bool; what is not a number is."""
        return ~((x.float() - self.centre).abs() <= self.threshold)

    def pruned(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """`x` (..., inputs) with the others at their centres, in the same shape; `keep` bool in that shape says which stay."""
        return torch.where(self.keeps(x) if keep is None else keep, x, self.centre.to(x.dtype))


class ActivationMethod(nn.Module):
    """Centres and thresholds of every layer, and how they are found.

    Parameters
    ----------
    config : Config
        The method's settings.
    geometry : ActivationGeometry

    Attributes
    ----------
    target : float
        Share that was asked for when it was calibrated, from the artifact.
    artifact : Artifact
        Of a method that was saved or read: where it stands, and what it was made from.
    training_shingles : (hashes,) uint64 or None
        Of the text that it was made from.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    artifact: Artifact
    training_shingles: np.ndarray | None

    learned: ClassVar[bool] = True
    cascaded: ClassVar[bool] = True
    """Whether a layer is calibrated on what the layers before it give when they are cut already."""
    guided: ClassVar[bool] = False
    """Whether up and down are cut by the activated gate, and not each by its own input."""
    by_channel: ClassVar[bool] = False
    """Whether each input has a centre and a threshold of its own."""

    def __init__(self, config: Any, geometry: ActivationGeometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        for part in self.parts:
            wide = geometry.shape(part)[1] if self.by_channel else 1
            self.register_buffer(f"{part}_centre", torch.zeros(geometry.layers, wide))
            self.register_buffer(f"{part}_threshold", torch.full((geometry.layers, wide), -1.0))

    @property
    def parts(self) -> tuple[str, ...]:
        """Matrices that are cut."""
        return self.geometry.parts

    @property
    def allocation(self) -> str:
        """How the share is spread over layers and matrices, "uniform", "block" or "price"."""
        return "uniform"

    @property
    def target(self) -> float | None:
        """Share of its own mask that it was calibrated to leave out; None if it was not read from an artifact."""
        artifact = getattr(self, "artifact", None)
        return None if artifact is None else artifact.training.get("target")

    def shares(self, target: float) -> dict[str, float]:
        """Share of each matrix's inputs that is cut where the allocation is "uniform"; their mean over the elements is the target.

        Raises
        ------
        ConfigError
            If the method's settings do not go with the target.
        """
        return dict.fromkeys(self.parts, target)

    def centre(self, part: str, x: Tensor, weight: Tensor) -> Tensor:
        """Where inputs usually are, `(1,)` or `(inputs,)`.

        Parameters
        ----------
        part : str
        x : (rows, inputs) float32
        weight : (outputs, inputs)
        """
        return torch.zeros(1, device=x.device)

    def scale(self, part: str, weight: Tensor, importance: Tensor | None) -> Tensor | None:
        """What a distance from the centre is worth, `(inputs,)`; None where all are worth the same.

        Parameters
        ----------
        part : str
        weight : (outputs, inputs) float32
        importance : (outputs,) or None
            Mean square of the gradient of what the model says by each output, where the method's config has `worth` "loss".
        """
        return None

    def cut(self, layer: int, part: str) -> Cut | None:
        """The cut of a matrix's inputs; None where all are read."""
        if self.guided or part not in self.parts:
            return None
        return Cut(getattr(self, f"{part}_centre")[layer], getattr(self, f"{part}_threshold")[layer]).kept()

    def gate_cut(self, layer: int) -> float | None:
        """Magnitude of the activated gate from above which a neuron's row of up and column of down are read; None where gates cut nothing."""
        return float(self.gate_threshold[layer]) if self.guided else None

    def set_cut(self, layer: int, part: str, cut: Cut) -> None:
        """Store a cut."""
        getattr(self, f"{part}_centre")[layer] = cut.centre
        getattr(self, f"{part}_threshold")[layer] = cut.threshold

    def parameter_count(self) -> int:
        """Numbers that are kept."""
        return sum(buffer.numel() for buffer in self.buffers())

    def state_bytes(self) -> int:
        """Bytes that a step reads of thresholds, of centres that are not zero, and of what these give (float32, an output).

        Centres that matrices of the same inputs share are read once.
        """
        found = 0
        for layer in range(self.geometry.layers):
            found += 4 if self.guided else 0
            for together in INPUTS:
                centres: list[Tensor] = []
                for part in together:
                    if (cut := self.cut(layer, part)) is None:
                        continue
                    found += _bytes(cut.threshold)
                    if cut.centre.any():
                        found += 4 * self.geometry.shape(part)[0]
                        if not any(torch.equal(cut.centre, known) for known in centres):
                            centres.append(cut.centre)
                found += sum(map(_bytes, centres))
        return found


REGISTRY: Registry[ActivationMethod] = Registry(__package__, "--activations")
register, methods, method, make_config = REGISTRY.register, REGISTRY.methods, REGISTRY.method, REGISTRY.make_config


def create(name: str, geometry: ActivationGeometry, **settings: Any) -> ActivationMethod:
    """A method that cuts nothing yet.

    Parameters
    ----------
    name : str
    geometry : ActivationGeometry
    **settings
        Fields of the method's config.
    """
    return method(name)(make_config(name, settings), geometry)


def _bytes(values: Tensor) -> int:
    return 4 if values.numel() == 1 else 2 * values.numel()


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless a setting has a known value."""
    if value not in known:
        raise ConfigError(f"setting {name!r} must be one of {', '.join(known)}, got {value!r}")


def as_geometry(sizes: dict[str, Any]) -> ActivationGeometry | None:
    """The geometry of stored sizes; None if they are none."""
    fields = {f.name: bool if f.name == "gated" else int for f in dataclasses.fields(ActivationGeometry)}
    valid = set(sizes) == set(fields) and all(type(sizes[name]) is kind for name, kind in fields.items())
    return ActivationGeometry(**sizes) if valid and all(sizes[name] >= 1 for name in fields if name != "gated") else None
