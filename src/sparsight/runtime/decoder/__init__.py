"""The native CPU decoder: packed weights, the state of a sequence, a plan's pieces, and the step."""

from .decoder import Decoder, Step, default_format, why_not_native_model
from .selection import NativeSelection, why_not_native
from .sequence import DecoderSequence

__all__ = ["Decoder", "DecoderSequence", "NativeSelection", "Step", "default_format", "why_not_native", "why_not_native_model"]
