"""One request as the engine sees it: what is asked, how far it is, and what it tells whoever asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..runtime.decoder import DecoderSequence
from ..runtime.decoder.sampling import Sampler
from ..runtime.generation import Decoding
from ..runtime.plan import Plan
from .errors import ApiError
from .readings import Reading
from .text import StopScanner, TextPieces


@dataclass(frozen=True)
class Ask:
    """What is asked, checked.

    Attributes
    ----------
    ids : list of int
        The prompt.
    decoding : Decoding
    plan : Plan or None
    stops : tuple of str
        Sequences that end the answer and are not part of it.
    logprobs : int or None
        Likeliest tokens to name beside each token's own log-probability; None for none of it.
    record : bool
        Keep what is read.
    seconds : float
        The request may take.
    """

    ids: list[int]
    decoding: Decoding
    plan: Plan | None = None
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    record: bool = False
    seconds: float = 600.0


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer, the natural logarithm of its probability at temperature 1, and the likeliest ones in its place.

    `start` is where its text begins in the answer, in characters.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    start: int


@dataclass(frozen=True)
class Piece:
    """New text, and the tokens that are certain with it."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How an answer ended, and what it took.

    Attributes
    ----------
    finish_reason : {"stop", "length"}
    token_ids : list of int
        The end token not among them.
    prompt_tokens : int
    share_read : float
        As `Generation.share_read`.
    bytes_per_token : float
        That a decode step read, the mean over the steps.
    step_seconds : float
        Median of the decode steps that the answer took part in, those of others at the same time included.
    wait_seconds, prefill_seconds, seconds : float
        Until it was taken up; for its prompt; in all.
    reading : Reading or None
    """

    finish_reason: str
    token_ids: list[int]
    prompt_tokens: int
    share_read: float
    bytes_per_token: float
    step_seconds: float
    wait_seconds: float
    prefill_seconds: float
    seconds: float
    reading: Reading | None = field(default=None, repr=False)


Event = Piece | Outcome | ApiError


class Job:
    """A request under way.

    Parameters
    ----------
    ask : Ask
    tokenizer : transformers tokenizer
    emit : callable
        Gets pieces, then one `Outcome` or `ApiError`; called in the engine's thread.
    """

    def __init__(self, ask: Ask, tokenizer, emit: Callable[[Event], None]) -> None:
        self.ask, self.emit = ask, emit
        self.sampler = Sampler(ask.decoding)
        self.sequence: DecoderSequence | None = None
        self.reading: Reading | None = None
        self.new: list[int] = []
        self.cancelled = False
        self.finish_reason: str | None = None
        self.asked = time.monotonic()
        self.deadline = self.asked + ask.seconds
        self.started = self.asked
        self.prefill_seconds = 0.0
        self.steps: list[float] = []
        self.read = self.held = 0
        self._pieces, self._scanner = TextPieces(tokenizer), StopScanner(ask.stops)
        self._certain = self._given = 0  # characters
        self._logprobs: list[TokenLogprob] = []

    @property
    def tokens(self) -> int:
        """Tokens that the sequence may come to hold."""
        return len(self.ask.ids) + self.ask.decoding.max_new_tokens

    def take(self, logits: np.ndarray, ends: set[int]) -> None:
        """Draw the next token from `(vocab,)` logits, and tell what is certain of the text with it."""
        token = self.sampler.draw(logits)
        self.new.append(token)
        if self.ask.logprobs is not None and token not in ends:
            self._logprobs.append(_logprob(logits, token, self.ask.logprobs, self._certain))
        piece = self._pieces.push(token)
        self._certain += len(piece)
        text = self._scanner.feed(piece)
        if self._scanner.stopped or token in ends:
            self.finish_reason = "stop"
        elif len(self.new) >= self.ask.decoding.max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None and not self._scanner.stopped:
            text += self._scanner.feed(self._pieces.end())
            text += self._scanner.end()
            if self._scanner.stopped:
                self.finish_reason = "stop"
        self._given += len(text)
        certain = tuple(one for one in self._logprobs if one.start < self._given or self.finish_reason and not self._scanner.stopped)
        if text or certain:
            self._logprobs = self._logprobs[len(certain) :]
            self.emit(Piece(text, certain))

    def answer_ids(self, ends: set[int]) -> list[int]:
        """The tokens of the answer without the end token."""
        return self.new[:-1] if self.new and self.new[-1] in ends else self.new


def _logprob(logits: np.ndarray, token: int, count: int, start: int) -> TokenLogprob:
    shifted = (logits - logits.max()).astype(np.float64)
    every = shifted - np.log(np.exp(shifted).sum())
    likeliest: Sequence[int] = ()
    if count:
        best = np.argpartition(-every, min(count, len(every) - 1))[:count]
        likeliest = best[np.lexsort((best, -every[best]))].tolist()
    return TokenLogprob(token, float(every[token]), tuple((i, float(every[i])) for i in likeliest), start)
