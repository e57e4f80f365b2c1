"""A model whose matrices are read only where their inputs are far from what they usually are."""

from .apply import ActivationRun, apply_activations, check_activations, check_not_shared
from .modules import ActivationState

__all__ = ["ActivationRun", "ActivationState", "apply_activations", "check_activations", "check_not_shared"]
