"""Counts of what a server did, written by the engine's thread and read by whoever watches."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

RECENT_SECONDS = 10.0


@dataclass
class Tally:
    """Counts since the start.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
    prefill_seconds, decode_seconds : float
        Of the native decoder.
    finished, cancelled, failed : int
        Requests.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    _seconds: deque[list[int]] = field(default_factory=deque, repr=False)

    def token(self) -> None:
        """Count a token of an answer."""
        self.new_tokens += 1
        second = int(time.monotonic())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0])
            while self._seconds[0][0] < second - RECENT_SECONDS:
                self._seconds.popleft()
        self._seconds[-1][1] += 1

    def rate(self) -> float:
        """New tokens a second over the last `RECENT_SECONDS`."""
        now = int(time.monotonic())
        return sum(count for second, count in list(self._seconds) if now - RECENT_SECONDS <= second < now) / RECENT_SECONDS
