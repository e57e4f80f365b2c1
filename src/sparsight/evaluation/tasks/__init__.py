"""Tasks whose answer stands somewhere in the text."""

from .coreference import Encoded, Reader, encode, score_items
from .items import Item, make_items
from .scores import Outcome, summarise, wilson_interval

__all__ = [
    "Encoded",
    "Item",
    "Outcome",
    "Reader",
    "encode",
    "make_items",
    "score_items",
    "summarise",
    "wilson_interval",
]
