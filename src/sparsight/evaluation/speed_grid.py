"""What a speed measurement covers, completed and checked for one model before anything long is run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..activations import ActivationMethod
from ..errors import ConfigError
from ..models import LoadedModel
from ..models.random_shapes import is_random_shape
from ..ops.packing import FORMATS
from ..runtime import Budget, Plan, Rule
from ..runtime.activations import check_activations
from ..runtime.decoder import (
    default_format,
    why_not_native,
    why_not_native_activations,
    why_not_native_model,
    why_not_native_units,
)
from ..runtime.decoder.units import FORMATS as UNIT_FORMATS
from ..runtime.units import UnitPlan, check_units, why_not_pieces
from ..tokens import method
from ..tokens.pretrained import find_shipped, resolve
from .rivals import WEIGHTS as RIVAL_WEIGHTS

CONTEXTS = (512, 2048, 8192)
SHIPPED = ("foresight", "lowrank")
RIVALS = ("llama.cpp", "transformers")
DENSE = "dense"
TURNS = 3
"""Of each candidate in one repeat."""
STEPS = 5
"""Counted in a turn."""


@dataclass(frozen=True)
class SpeedGrid:
    """What is measured. What is left empty is chosen by the model, see `settled`.

    Attributes
    ----------
    contexts : tuple of int
        Tokens that a step attends to, its own included.
    threads : tuple of int
    weights : tuple of str
        Formats of the native decoder's weights.
    select : tuple of str
        Methods as `tokens.pretrained.resolve` takes them; "dense" is always measured.
    budgets : tuple of Budget
    rule : Rule
        By which methods choose.
    index_dtype : str, optional
        What a predictor keeps its importance keys in.
    units : tuple of (str, UnitPlan)
        Heads and neurons left out, by a name to call them; the native decoder needs weights that are not integers for that.
    activations : tuple of (str, ActivationMethod)
        Matrices cut by their inputs, by a name to call them; not with int4.
    against : tuple of {"llama.cpp", "transformers"}
    repeats : int
        Of `TURNS` turns of `STEPS` counted steps each.
    """

    contexts: tuple[int, ...] = ()
    threads: tuple[int, ...] = (1,)
    weights: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = field(default_factory=lambda: (Budget.parse("1/8"),))
    rule: Rule = Rule()
    index_dtype: str | None = None
    units: tuple[tuple[str, UnitPlan], ...] = ()
    activations: tuple[tuple[str, ActivationMethod], ...] = ()
    against: tuple[str, ...] = ()
    repeats: int = 5

    def settled(self, loaded: LoadedModel) -> SpeedGrid:
        """The same for one model, complete and checked.

        Contexts are `CONTEXTS` as far as the model's reaches, weights its `default_format`, methods those of `SHIPPED` whose predictor ships.

        Raises
        ------
        ConfigError
            If a value is out of range or unknown.
        """
        limit = loaded.anatomy.context_length
        shipped = tuple(name for name in SHIPPED if find_shipped(name, loaded.fingerprint) is not None)
        asked = self.select or self.units or self.activations
        given = {name: tuple(dict.fromkeys(getattr(self, name))) for name in ("threads", "budgets", "against")}
        grid = replace(
            self,
            contexts=tuple(sorted(set(self.contexts))) or tuple(c for c in CONTEXTS if c <= limit) or (limit,),
            weights=tuple(dict.fromkeys(self.weights)) or (self._default_weights(loaded),),
            select=tuple(dict.fromkeys(spec for spec in self.select if spec != DENSE)) if asked else shipped,
            **given,
        )
        if (context := max(grid.contexts)) > limit:
            raise ConfigError(f"a context of {context} tokens is more than the {limit} of '{loaded.name}'; choose --context up to {limit}")
        if (context := min(grid.contexts)) <= grid.rule.interval:
            raise ConfigError(f"a context must be above the interval, {grid.rule.interval}, got {context}; choose a larger --context")
        if not grid.threads or min(grid.threads) < 1:
            raise ConfigError(f"threads must be at least 1, got {', '.join(map(str, grid.threads)) or 'none'}; choose other --threads")
        if grid.repeats < 1:
            raise ConfigError(f"repeats must be at least 1, got {grid.repeats}; choose another --repeats")
        grid._check_names()
        return grid

    def _default_weights(self, loaded: LoadedModel) -> str:
        """What is measured if nothing is said."""
        if (self.units or self.activations) and default_format(loaded) not in UNIT_FORMATS:
            return "bf16"
        return default_format(loaded)

    def _check_names(self) -> None:
        for name in self.weights:
            if name not in FORMATS:
                raise ConfigError(f"weights can be kept in {', '.join(FORMATS)}, got {name!r}; choose one of these")
            if "llama.cpp" in self.against and name not in RIVAL_WEIGHTS:
                known = ", ".join(RIVAL_WEIGHTS)
                raise ConfigError(f"llama.cpp can be compared at weights {known}, got {name!r}; choose --weights among these")
        for name in self.against:
            if name not in RIVALS:
                raise ConfigError(f"speed can be compared with {' and '.join(RIVALS)}, got {name!r}; choose one of these")


def check_units_native(loaded: LoadedModel, grid: SpeedGrid) -> None:
    """Raise `ConfigError` if the native decoder cannot leave units out as asked for."""
    for name, plan in grid.units:
        check_units(loaded, plan)
        for weights in grid.weights:
            reason = why_not_pieces(plan) or why_not_native_units(loaded, weights, plan.sparsity.heads > 0, plan.sparsity.neurons > 0)
            if reason is not None:
                raise ConfigError(f"the native decoder cannot run {name!r} as asked for: {reason}; leave that out")


def check_activations_native(loaded: LoadedModel, grid: SpeedGrid) -> None:
    """Raise `ConfigError` if the native decoder cannot cut matrices as asked for."""
    for name, cuts in grid.activations:
        check_activations(loaded, cuts)
        for weights in grid.weights:
            if (reason := why_not_native_activations(loaded, cuts, weights)) is not None:
                raise ConfigError(f"the native decoder cannot run {name!r} as asked for: {reason}; leave that out")


def make_plans(loaded: LoadedModel, grid: SpeedGrid) -> list[tuple[str, Plan | None]]:
    """Names and plans of what the native decoder is to run: dense, then each method at each budget.

    Parameters
    ----------
    loaded : LoadedModel
    grid : SpeedGrid
        Settled.

    Raises
    ------
    BudgetError, ConfigError, ArtifactError, StorageError
        If the native decoder cannot run the model or a plan, there is no predictor, or a budget does not hold sinks and window.
    """
    for weights in grid.weights:
        if (reason := why_not_native_model(loaded, weights)) is not None:
            raise ConfigError(f"the native decoder cannot run '{loaded.name}' with {weights} weights: {reason}")
    plans: list[tuple[str, Plan | None]] = [(DENSE, None)]
    for spec in grid.select:
        name = spec.partition("=")[0].partition(":")[0].strip()
        if is_random_shape(loaded.name) and method(name).learned:
            raise ConfigError(f"'{loaded.name}' has random weights, to which no predictor of {name!r} belongs; select quest or streaming")
        selector = resolve(spec, loaded, grid.index_dtype)
        for budget in grid.budgets if selector.selects else ():
            plan = Plan(selector, budget, grid.rule)
            if (reason := why_not_native(plan)) is not None:
                raise ConfigError(f"the native decoder cannot run {spec!r} as asked for: {reason}; leave that out")
            for context in grid.contexts:
                plan.tokens([context])
            plans.append((spec, plan))
    return plans
