"""Many clients at once that ask well and badly, go away in the middle, and a server that is told to stop in the middle."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

from .process import Server

EXPECTED = {"good": 200, "stream": 200, "leave": "gone", "malformed": 400, "no-such-field": 400, "too-long": 400, "too-large": 413}
KINDS = ("good",) * 6 + ("stream",) * 5 + ("leave",) * 3 + ("malformed", "no-such-field", "too-long", "too-large")


@dataclass(frozen=True)
class Case:
    """A request, and the text that `generate` gives for it."""

    body: dict[str, Any]
    text: str


@dataclass
class Found:
    """What came of it.

    Attributes
    ----------
    answers : Counter
        By kind of request and status; "gone" where the client left, "refused" for a connection that a stopping server did not take.
    wrong : list of str
        What should not have been.
    """

    answers: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Stress:
    """Clients in threads.

    Parameters
    ----------
    server : Server
    cases : sequence of Case
    stop_after : int, optional
        Requests after which the server is told to stop.
    """

    def __init__(self, server: Server, cases: Sequence[Case], stop_after: int | None = None) -> None:
        self._server, self._cases, self._stop_after = server, cases, stop_after
        self._lock, self._asked = threading.Lock(), 0
        self.found = Found()

    def run(self, clients: int, requests: int, seed: int = 0) -> Found:
        """Let so many clients ask so often each."""
        threads = [threading.Thread(target=self._client, args=(random.Random(seed + i), requests)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.found

    def _client(self, chance: random.Random, requests: int) -> None:
        with httpx.Client(base_url=self._server.url, timeout=300) as client:
            for _ in range(requests):
                with self._lock:
                    self._asked += 1
                    if self._asked == self._stop_after:
                        self._server.tell()
                kind, case = chance.choice(KINDS), chance.choice(self._cases)
                try:
                    self._check(kind, getattr(self, f"_{kind.replace('-', '_')}")(client, case, chance))
                except httpx.HTTPError as error:
                    # A server that stops takes no connection, and closes those that nothing is asked on.
                    self._note(kind, "refused" if self._server.told else f"{type(error).__name__}: {error}", self._server.told)

    def _note(self, kind: str, came: object, right: bool) -> None:
        with self._lock:
            self.found.answers[f"{kind} {came}"] += 1
            if not right:
                self.found.wrong.append(f"{kind}: {came}")

    def _check(self, kind: str, came: object) -> None:
        self._note(kind, came, came == EXPECTED[kind] or self._server.told and came == 503)

    def _good(self, client, case, chance):
        answer = client.post("/v1/completions", json=case.body)
        if answer.status_code == 200 and (text := answer.json()["choices"][0]["text"]) != case.text:
            return f"wrong answer {text!r}"
        return answer.status_code

    def _stream(self, client, case, chance):
        with client.stream("POST", "/v1/completions", json={**case.body, "stream": True}) as answer:
            if answer.status_code != 200:
                answer.read()
                return answer.status_code
            events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        if events[-1] != "[DONE]":  # ended by a server that stops
            return json.loads(events[-1])["error"]["code"] if not self._server.told else 503
        text = "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])
        return 200 if text == case.text else f"wrong answer {text!r}"

    def _leave(self, client, case, chance):
        """Go away after some events, or, without any, at once."""
        stay = chance.randrange(0, 8)
        with client.stream("POST", "/v1/completions", json={**case.body, "stream": True}) as answer:
            if answer.status_code != 200:
                answer.read()
                return answer.status_code
            for _, count in zip(answer.iter_lines(), range(stay), strict=False):
                del count
        return "gone"

    def _malformed(self, client, case, chance):
        body = chance.choice([b"{", b"[]", b"\xff", b"", json.dumps(case.body).encode()[:-3]])
        return client.post("/v1/completions", content=body, headers={"content-type": "application/json"}).status_code

    def _no_such_field(self, client, case, chance):
        return client.post("/v1/completions", json={**case.body, **chance.choice([{"n": 3}, {"nonsense": 1}, {"temperature": -1}])}).status_code

    def _too_long(self, client, case, chance):
        return client.post("/v1/completions", json={**case.body, "prompt": "word " * 20_000}).status_code

    def _too_large(self, client, case, chance):
        return client.post("/v1/completions", json={**case.body, "prompt": "word " * 600_000}).status_code
