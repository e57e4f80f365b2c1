"""A model under a plan: the plan as data, the cache, the Hugging Face graph run by it."""

from .adaptive import KINDS, Adaptive, HeadShares, Thresholds, TopP, excess
from .apply import DecodeRun, apply
from .attention import Handler, attached, first_real_tokens
from .cache import SelectingCache
from .conversation import Conversation
from .decoder import Decoder, DecoderSequence
from .generate import generate
from .generation import Decoding, Generation
from .plan import MINIMUM_TOKENS, Budget, Plan
from .rule import Rule, choose, pick, remembered, score
from .runtimes import RUNTIMES, choose_runtime, kept_decoder

__all__ = [
    "KINDS",
    "Adaptive",
    "HeadShares",
    "TopP",
    "RUNTIMES",
    "Decoder",
    "DecoderSequence",
    "Decoding",
    "choose_runtime",
    "kept_decoder",
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
