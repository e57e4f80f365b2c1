"""A conversation that goes on: its messages, and the KV cache of what was said, so that a turn processes only what is new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.cache_utils import Cache

from ..activations import ActivationMethod
from ..errors import TextError
from ..models import LoadedModel
from .apply import Observer
from .decoder import DecoderSequence
from .encode import check_chat, encode_chat
from .evicting_cache import EvictingCache
from .generate import decode
from .generation import Decoding, Generation
from .plan import Plan
from .units import UnitPlan


class Conversation:
    """Turns of user and model over one KV cache.

    Each turn encodes the whole conversation by the model's chat template, keeps the longest beginning of it that the cache holds, drops the
    rest of the cache and processes only the tokens behind it. Dense, the answers are those that a run without the cache would give, up to
    the rounding of the dtype. Under a plan they need not be: keys and values of earlier answers stay as sparse decoding left them, while a
    run without the cache would read those answers densely, as part of its prompt. What the user says is always read densely.

    Parameters
    ----------
    loaded : LoadedModel
    plan : Plan, optional
        Dense without one.
    system : str, optional
        The system message; some templates set one of their own without it, and some allow none.
    runtime, weights, threads, units, activations
        As for `generate`. In prompt mode heads and neurons are chosen anew at each turn, by what is new in it.

    Attributes
    ----------
    messages : list of dict
        `role` and `content` of everything said. It may be changed between turns: what no longer agrees leaves the cache.
    cached_tokens : int
        Tokens whose keys and values are held.

    Raises
    ------
    ConfigError
        If the model has no chat template.

    Examples
    --------
    >>> talk = Conversation(loaded, plan)                           # doctest: +SKIP
    >>> talk.say("Name three uses of copper.").text                 # doctest: +SKIP
    >>> talk.say("Which of them is the oldest?").reused_tokens      # doctest: +SKIP
    """

    def __init__(
        self,
        loaded: LoadedModel,
        plan: Plan | None = None,
        system: str | None = None,
        *,
        runtime: str = "auto",
        weights: str | None = None,
        threads: int | None = None,
        units: UnitPlan | None = None,
        activations: ActivationMethod | None = None,
    ) -> None:
        check_chat(loaded)
        self.loaded = loaded
        self.plan = plan
        self.system = system
        self._how: dict[str, Any] = {"runtime": runtime, "weights": weights, "threads": threads, "units": units, "activations": activations}
        self._cache: Cache | DecoderSequence | None = None
        self._ids: list[int] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages: list[dict[str, str]] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})
        self._forget()

    @property
    def cached_tokens(self) -> int:
        """Tokens of the conversation that the cache holds, and that the next turn need not read again."""
        return len(self._ids)

    def say(
        self,
        text: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stream: Callable[[str], None] | None = None,
        observer: Observer | None = None,
    ) -> Generation:
        """Say something and get the answer; both join the messages. After an error neither does, and the cache is dropped.

        Parameters
        ----------
        text : str
        max_new_tokens, temperature, top_p, seed, stream, observer
            As for `generate`.

        Returns
        -------
        Generation
            `prompt_tokens` counts the whole conversation, `reused_tokens` those of them that were in the cache.

        Raises
        ------
        TextError
            For an empty text, or a conversation longer than the model's context allows.
        ConfigError, ModelError
            As `generate`.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed=seed)
        if not text.strip():
            raise TextError("there is nothing to answer; say something")
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = encode_chat(self.loaded, asked)[0].tolist()
        reused, cache = self._keep(ids)
        self._forget()  # whatever interrupts the decoding, no half-written cache is taken for a whole one
        (made,), cache = decode(
            self.loaded,
            [ids],
            self.plan,
            decoding,
            cache=cache,
            names=["the conversation"],
            stream=stream,
            observer=observer,
            **self._how,
        )
        made.reused_tokens = reused
        self._cache = cache
        # The last token was given out but not processed.
        self._ids = (ids + made.token_ids)[: cache.get_seq_length()]
        self.messages = [*asked, {"role": "assistant", "content": made.text}]
        return made

    def _keep(self, ids: list[int]) -> tuple[int, Cache | DecoderSequence | None]:
        """Crop the cache to what it has in common with `ids`: how many tokens that are, and the cache or None to begin anew."""
        # Two tokens at least are left to process: a step of one token would be decoded under the plan, but this is the prompt.
        room = max(len(ids) - 2, 0)
        common = 0
        while common < min(len(self._ids), room) and self._ids[common] == ids[common]:
            common += 1
        if common == 0 or self._cache is None:
            return 0, None
        surplus = len(self._ids) - common
        if surplus:
            # A sliding-window layer that has let tokens go cannot return to an earlier one.
            if surplus > _removable(self._cache):
                return 0, None
            self._cache.crop(-surplus)
        return common, self._cache

    def _forget(self) -> None:
        self._cache, self._ids = None, []


def _removable(cache: Cache | DecoderSequence) -> int:
    """How many of the last tokens the cache can forget."""
    if isinstance(cache, (DecoderSequence, EvictingCache)):
        return cache.removable
    full = any(getattr(layer, "sliding_window", None) is not None and layer.get_seq_length() >= layer.sliding_window for layer in cache.layers)
    return 0 if full else cache.get_seq_length()
