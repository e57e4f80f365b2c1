"""Which runtime computes a generation: the native CPU decoder where it can, else the Hugging Face graph."""

from __future__ import annotations

import torch

from ..activations import ActivationMethod
from ..errors import ConfigError
from ..models import LoadedModel
from .decoder import (
    Decoder,
    default_format,
    why_not_native,
    why_not_native_activations,
    why_not_native_model,
    why_not_native_units,
)
from .plan import Plan
from .units import UnitPlan, why_not_pieces

RUNTIMES = ("auto", "native", "hf")


def choose_runtime(
    loaded: LoadedModel,
    plan: Plan | None,
    beams: int = 1,
    runtime: str = "auto",
    weights: str | None = None,
    threads: int | None = None,
    units: UnitPlan | None = None,
    activations: ActivationMethod | None = None,
) -> tuple[Decoder | None, str | None]:
    """The native decoder to use, or None for the Hugging Face graph, and why it was not the native one.

    Parameters
    ----------
    loaded : LoadedModel
        Keeps the decoder, so that weights are packed once.
    plan : Plan or None
    beams : int
    runtime : {"auto", "native", "hf"}
    weights, threads
        See `Decoder`.
    units : UnitPlan, optional
        Needs weights that are not integers: by default they are kept in bfloat16 then, or as the model has them.
    activations : ActivationMethod, optional
        The same; int8 can be asked for.

    Raises
    ------
    ConfigError
        If the runtime is unknown, `native` is asked for and cannot be, or `weights` are given for `hf`.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}; use auto if unsure")
    if runtime == "hf":
        if weights is not None:
            raise ConfigError(f"weights in {weights} are for the native decoder, but the runtime is hf; leave one of the two out")
        return None, None
    if (units is not None or activations is not None) and weights is None:
        kept: str | None = "fp32" if loaded.model.dtype == torch.float32 else "bf16"
    else:
        kept = weights
    reason = _why_not(loaded, plan, beams, kept) or _why_not_units(loaded, units, kept)
    reason = reason or _why_not_activations(loaded, activations, units, kept)
    if reason is None:
        return kept_decoder(loaded, kept, threads), None
    if runtime == "native" or weights is not None:
        raise ConfigError(f"the native decoder cannot do this: {reason}; use --runtime hf and leave out --weights")
    return None, reason


def kept_decoder(loaded: LoadedModel, weights: str | None = None, threads: int | None = None) -> Decoder:
    """The decoder of a model, kept with it; one kind of weights at a time.

    Raises
    ------
    ConfigError
        See `Decoder`.
    """
    format = weights or default_format(loaded)
    found = _kept(loaded, format)
    if found is None:
        loaded.kept.pop(Decoder, None)  # its memory goes before more is taken
        found = loaded.kept[Decoder] = Decoder(loaded, format, threads)
    found.use_threads(threads)
    return found


def _why_not(loaded: LoadedModel, plan: Plan | None, beams: int, weights: str | None) -> str | None:
    if beams > 1:
        return "it has no beam search"
    if plan is not None and (reason := why_not_native(plan)) is not None:
        return reason
    if _kept(loaded, weights or default_format(loaded)) is not None:
        return None
    return why_not_native_model(loaded, weights)


def _why_not_units(loaded: LoadedModel, units: UnitPlan | None, format: str | None) -> str | None:
    if units is None:
        return None
    if (reason := why_not_pieces(units)) is not None:
        return reason
    found = _kept(loaded, format)
    heads, neurons = units.sparsity.heads > 0, units.sparsity.neurons > 0
    return why_not_native_units(loaded, format, heads, neurons, found is not None and found.prepared)


def _why_not_activations(
    loaded: LoadedModel, activations: ActivationMethod | None, units: UnitPlan | None, format: str | None
) -> str | None:
    if activations is None:
        return None
    if units is not None:
        return "it leaves out heads and neurons, or cuts by activations, not both"
    found = _kept(loaded, format)
    return why_not_native_activations(loaded, activations, format, found is not None and found.has_columns(activations))


def _kept(loaded: LoadedModel, format: str) -> Decoder | None:
    """The decoder that is there, if it is of this model: a copy of a `LoadedModel` with something replaced shares what is kept."""
    found = loaded.kept.get(Decoder)
    return found if found is not None and found.loaded is loaded and found.format == format else None
