"""Operations on plain tensors: importance, selection, attention over what was selected.

Each is the PyTorch reference of its operation: the definition of correct that a faster backend is tested against.
"""

from .attention import dense_attention, gathered_attention, masked_attention
from .buffer import GrowingTensor
from .crush import can_represent, hamming, pack_bits, popcount, represent, spread
from .importance import REDUCTIONS, attention_weights, group_importance, grouped_scores, share_heads
from .pages import page_bound, page_candidates
from .quantize import INDEX_DTYPES, channel_scales, index_bytes, pack_channels, unpack_channels
from .rows_quantised import dequantise_rows, quantise_rows, row_bytes
from .select import UNUSED, keep_mask, select_tokens, selectable_tokens, spread_to_neighbours, visible_tokens

__all__ = [
    "INDEX_DTYPES",
    "REDUCTIONS",
    "UNUSED",
    "GrowingTensor",
    "attention_weights",
    "can_represent",
    "channel_scales",
    "dense_attention",
    "dequantise_rows",
    "gathered_attention",
    "group_importance",
    "grouped_scores",
    "hamming",
    "index_bytes",
    "keep_mask",
    "masked_attention",
    "pack_bits",
    "pack_channels",
    "page_bound",
    "page_candidates",
    "popcount",
    "quantise_rows",
    "represent",
    "row_bytes",
    "select_tokens",
    "selectable_tokens",
    "share_heads",
    "spread",
    "spread_to_neighbours",
    "unpack_channels",
    "visible_tokens",
]
