"""A model under a plan: the plan as data, the cache, the Hugging Face graph run by it."""

from .apply import DecodeRun, apply
from .attention import Handler, attached, first_real_tokens
from .cache import SelectingCache
from .generate import Generation, generate
from .plan import MINIMUM_TOKENS, Budget, Plan, choose

__all__ = [
    "MINIMUM_TOKENS",
    "Budget",
    "DecodeRun",
    "Generation",
    "Handler",
    "Plan",
    "SelectingCache",
    "apply",
    "attached",
    "choose",
    "first_real_tokens",
    "generate",
]
