"""Bytes that a decode step reads where heads and neurons are left out. Weights count two bytes an element, as in `evaluation.bytes`."""

from __future__ import annotations

from ..models import Anatomy
from ..runtime.units import UnitPlan
from ..units.pieces import Gated
from .bytes import ELEMENT


def skipped_elements(anatomy: Anatomy, plan: UnitPlan, heads: float, neurons: float) -> float:
    """Weight elements that a step does not read.

    Rows of W_Q and columns of W_O of the heads; of the neurons the rows of gate and up and the columns of W_down, but for what is computed
    whole to choose. Keys and values are all made and read.

    Parameters
    ----------
    anatomy : Anatomy
    plan : UnitPlan
    heads, neurons : float
        Shares really left out of the layers that skip.
    """
    total = 0.0
    for layer in plan.layers:
        found = anatomy.projections(layer)
        total += heads * 2 * anatomy.query_heads * anatomy.head_dim * anatomy.hidden_size
        matrices = len([name for name in ("gate", "up", "down") if name in found])
        chosen_by_factor = plan.neuron_mode == "token" and isinstance(plan.units.neuron_piece(layer), Gated)
        total += neurons * (matrices - chosen_by_factor) * anatomy.intermediate_size * anatomy.hidden_size
    return total


def unit_bytes(anatomy: Anatomy, plan: UnitPlan, heads: float, neurons: float) -> dict[str, float]:
    """Bytes saved and added by a plan.

    Returns
    -------
    dict
        "skipped" (weights not read) and "units" (the predictor's weights, read in token mode only: otherwise the choice stands).
    """
    predictor = sum(m.parameter_count() for m in plan.methods) if "token" in plan.modes else 0
    return {"skipped": ELEMENT * skipped_elements(anatomy, plan, heads, neurons), "units": float(ELEMENT * predictor)}
