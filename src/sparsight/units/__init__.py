"""Which heads and neurons to compute: one file a method."""

from .base import (
    MODES,
    Prompt,
    Scores,
    UnitGeometry,
    UnitMethod,
    UnitRows,
    create,
    make_config,
    method,
    methods,
    register,
)
from .choose import POOLS, SPREADS, Counts, Sparsity, best_heads, best_neurons, counts

__all__ = [
    "MODES",
    "POOLS",
    "SPREADS",
    "Counts",
    "Prompt",
    "Scores",
    "Sparsity",
    "UnitGeometry",
    "UnitMethod",
    "UnitRows",
    "best_heads",
    "best_neurons",
    "counts",
    "create",
    "make_config",
    "method",
    "methods",
    "register",
]
