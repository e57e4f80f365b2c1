"""Tasks whose answer stands somewhere in the text."""

from .coreference import Encoded, Reader, encode, score_items
from .items import Item, make_items
from .long_scores import score_tasks
from .long_tasks import LONG_TASKS, make_prompts
from .prompted import CutPrompt, Prompted, cut_prompt
from .scores import Outcome, summarise, wilson_interval

__all__ = [
    "LONG_TASKS",
    "CutPrompt",
    "Encoded",
    "Item",
    "Outcome",
    "Prompted",
    "Reader",
    "cut_prompt",
    "encode",
    "make_items",
    "make_prompts",
    "score_items",
    "score_tasks",
    "summarise",
    "wilson_interval",
]
