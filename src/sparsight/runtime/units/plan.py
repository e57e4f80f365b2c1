"""Which heads and neurons to leave out, as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ...errors import ConfigError
from ...units import MODES, Counts, Sparsity, UnitMethod, counts

RULES = ("threshold", "count")


@dataclass(frozen=True, eq=False)
class UnitPlan:
    """A method, how much it leaves out, and when it chooses.

    Layer 0 is computed whole.

    Attributes
    ----------
    units : UnitMethod
        Chooses the neurons, and the heads if `heads` does not.
    sparsity : Sparsity
    mode : {"static", "prompt", "token"}, optional
        Of `units`; by default the first it has.
    heads : UnitMethod, optional
        Chooses the heads, in the first of its modes that is `mode`, or the first it has.
    spread : {"local", "global", "hybrid"}
        How the budget is spread over layers, see `units.choose.counts`.
    pool : {"layer", "group"}
        Heads are the best of a layer, or the same number of each KV group.
    rule : {"threshold", "count"}
        In token mode: neurons whose score reaches a threshold, which leaves out the share on average and lets a token that needs more have
        them, or the same number for every token. Methods without thresholds count.

    Raises
    ------
    ConfigError
        If a method does not have the mode, or a method that scores no heads has to choose them.
    BudgetError
        See `units.choose.counts`.
    """

    units: UnitMethod
    sparsity: Sparsity
    mode: str | None = None
    heads: UnitMethod | None = None
    spread: str = "local"
    rule: str = "threshold"
    pool: str = "layer"

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in MODES:
            raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.mode is not None and self.mode not in self.units.modes:
            raise ConfigError(f"{self.units.name!r} chooses in the mode {' or '.join(self.units.modes)}, not {self.mode}; change --mode")
        if self.rule not in RULES:
            raise ConfigError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.heads is not None and self.heads.geometry != self.units.geometry:
            raise ConfigError(f"{self.heads.name!r} and {self.units.name!r} are of different models; use predictors of one model")
        _ = self.counts

    @property
    def neuron_mode(self) -> str:
        """Mode in which neurons are chosen."""
        return self.mode or self.units.modes[0]

    @property
    def head_method(self) -> UnitMethod:
        """The method that chooses the heads."""
        return self.heads or self.units

    @property
    def head_mode(self) -> str:
        """Mode in which heads are chosen."""
        if self.heads is None:
            return self.neuron_mode
        return self.mode if self.mode in self.heads.modes else self.heads.modes[0]

    @property
    def modes(self) -> set[str]:
        """Modes of what is left out at all."""
        used = {self.head_mode} if self.sparsity.heads else set()
        return used | ({self.neuron_mode} if self.sparsity.neurons else set())

    @property
    def methods(self) -> tuple[UnitMethod, ...]:
        """The methods that choose something."""
        found = [self.head_method] if self.sparsity.heads else []
        if self.sparsity.neurons and self.units not in found:
            found.append(self.units)
        return tuple(found)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that skip."""
        return tuple(range(1, self.units.geometry.layers))

    @cached_property
    def counts(self) -> Counts:
        """What each layer keeps; on average, where neurons are cut at a threshold."""
        mean = None if self.spread == "local" else self.units.mean_scores()
        return counts(self.sparsity, self.units.geometry, self.layers, self.spread, mean, self.pool)

    def cut(self, layer: int) -> float | None:
        """Threshold on the neuron scores of a layer; None where neurons are counted."""
        if self.rule == "count" or self.neuron_mode != "token":
            return None
        wide = self.units.geometry.intermediate_size
        return self.units.cut(layer, 1 - self.counts.neurons[layer] / wide)

    @property
    def parameter_count(self) -> int:
        """Parameters of the methods that choose."""
        return sum(method.parameter_count() for method in self.methods)
