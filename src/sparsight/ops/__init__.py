"""Operations on plain tensors: importance, selection, attention over what was selected.

Each is the PyTorch reference of its operation: the definition of correct that a faster backend is tested against.
"""

from .attention import dense_attention, gathered_attention, masked_attention
from .buffer import GrowingTensor
from .importance import attention_weights, group_importance
from .quantize import dequantize_channels, int8_scales, quantize_channels
from .select import keep_mask, select_tokens, selectable_tokens, visible_tokens

__all__ = [
    "GrowingTensor",
    "attention_weights",
    "dense_attention",
    "dequantize_channels",
    "gathered_attention",
    "group_importance",
    "int8_scales",
    "keep_mask",
    "masked_attention",
    "quantize_channels",
    "select_tokens",
    "selectable_tokens",
    "visible_tokens",
]
