"""Heads and neurons left out of a model: the plan as data, masks for scoring, and skipping that is real."""

from .apply import UnitRun, apply_units, check_units
from .choices import Choices
from .masked import Tally, masked, recorded
from .native import unit_pieces, why_not_pieces
from .plan import UnitPlan
from .watch import PromptRecord, Watch

__all__ = [
    "Choices",
    "PromptRecord",
    "Tally",
    "UnitPlan",
    "UnitRun",
    "Watch",
    "apply_units",
    "check_units",
    "masked",
    "recorded",
    "unit_pieces",
    "why_not_pieces",
]
