"""A model under a plan: the plan as data, the cache, the Hugging Face graph run by it."""

from .apply import DecodeRun, apply
from .attention import Handler, attached, first_real_tokens
from .cache import SelectingCache
from .conversation import Conversation
from .generate import Generation, generate
from .plan import MINIMUM_TOKENS, Budget, Plan
from .rule import Rule, Thresholds, choose, excess, pick, remembered, score

__all__ = [
    "MINIMUM_TOKENS",
    "Budget",
    "Conversation",
    "DecodeRun",
    "Generation",
    "Handler",
    "Plan",
    "Rule",
    "SelectingCache",
    "Thresholds",
    "apply",
    "attached",
    "choose",
    "excess",
    "first_real_tokens",
    "generate",
    "pick",
    "remembered",
    "score",
]
