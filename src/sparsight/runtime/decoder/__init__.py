"""The native CPU decoder: packed weights, the state of a sequence, a plan's pieces, and the step."""

from .activations import ActivationCounts, NativeActivations, why_not_native_activations
from .decoder import Decoder, Step, default_format, why_not_native_model
from .selection import NativeSelection, why_not_native
from .sequence import DecoderSequence
from .units import NativeUnits, why_not_native_units

__all__ = [
    "ActivationCounts",
    "Decoder",
    "DecoderSequence",
    "NativeActivations",
    "NativeSelection",
    "NativeUnits",
    "Step",
    "default_format",
    "why_not_native",
    "why_not_native_activations",
    "why_not_native_model",
    "why_not_native_units",
]
