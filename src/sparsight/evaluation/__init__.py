"""Proof: perplexity, recall and bytes of every selector on equal terms, in result files that can be repeated."""

from .bytes import bytes_per_token, state_fraction
from .evaluate import GateError, check_gate, evaluate
from .intervals import clustered_mean
from .protocol import PAPER_RULE, Protocol
from .scoring import Chunk, Scorer

__all__ = [
    "PAPER_RULE",
    "Chunk",
    "GateError",
    "Protocol",
    "Scorer",
    "bytes_per_token",
    "check_gate",
    "clustered_mean",
    "evaluate",
    "state_fraction",
]
