"""A unit plan as the pieces that the native decoder computes."""

from __future__ import annotations

from torch import Tensor

from ...units import best_heads, best_neurons
from ...units.pieces import Foreseen, Gated, LayerUnits, UnitPieces
from .choices import Choices
from .plan import UnitPlan


def why_not_pieces(plan: UnitPlan) -> str | None:
    """Why a plan is not made of pieces, in a few words; None if it is."""
    layer = plan.layers[-1]
    if plan.sparsity.heads and plan.head_mode == "token" and plan.head_method.head_piece(layer) is None:
        return f"the method {plan.head_method.name!r} is not made of the pieces it has"
    if plan.sparsity.neurons and plan.neuron_mode == "token":
        piece = plan.units.neuron_piece(layer)
        if piece is None:
            return f"the method {plan.units.name!r} is not made of the pieces it has"
        if not isinstance(piece, Tensor) and plan.cut(layer) is None:
            return "it compares neurons with a threshold, and does not count them"
    foretelling = [method for method in plan.methods if "token" in plan.modes and method.producer_piece(plan.layers[-2]) is not None]
    if len(foretelling) > 1:
        return "heads and neurons are foretold by two networks, and it has room for one a layer"
    return None


def unit_pieces(plan: UnitPlan, choices: Choices, row: int = 0) -> UnitPieces:
    """The pieces of a plan.

    Parameters
    ----------
    plan : UnitPlan
        Made of pieces, see `why_not_pieces`.
    choices : Choices
        Of this plan; has seen the prompt if the plan needs it.
    row : int
        Of the batch that the choices are for.
    """
    counts, layers = plan.counts, {}
    for i in plan.layers:
        heads: Tensor | Foreseen | None = None
        neurons: Tensor | Foreseen | Gated | None = None
        cut = 0.0
        if plan.sparsity.heads:
            heads = _of_row(choices.heads[i], row) if plan.head_mode != "token" else plan.head_method.head_piece(i)
            if plan.head_mode == "token" and isinstance(heads, Tensor):
                heads = _indices(best_heads(heads, counts.heads[i], counts.pool))
        if plan.sparsity.neurons:
            neurons = _of_row(choices.neurons[i], row) if plan.neuron_mode != "token" else plan.units.neuron_piece(i)
            if plan.neuron_mode == "token":
                found = plan.cut(i)
                if isinstance(neurons, Tensor):
                    neurons = _indices(best_neurons(neurons, counts.neurons[i]) if found is None else neurons >= found)
                else:
                    cut = found
        layers[i] = LayerUnits(heads, counts.heads[i], counts.pool, neurons, cut)
    used = {found.producer for layer in layers.values() for found in (layer.heads, layer.neurons) if isinstance(found, Foreseen)}
    producers = {}
    for method in plan.methods:
        for p in used & set(method.producers):
            if p in producers:
                continue
            producers[p] = method.producer_piece(p)
    return UnitPieces(layers, producers)


def _of_row(masks: Tensor, row: int) -> Tensor:
    return _indices(masks[min(row, len(masks) - 1)])


def _indices(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, 0].cpu()
