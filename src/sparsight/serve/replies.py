"""Answers in OpenAI's shapes, whole or as server-sent events, sent as the engine makes them; who goes away is noticed at once."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from contextlib import suppress
from typing import Any

from starlette.responses import Response

from .engine import Engine
from .errors import ApiError
from .gate import answer_error
from .job import Ask, Job, Outcome, Piece, TokenLogprob
from .readings import Readings
from .text import TokenBytes

_GONE = object()
_SLOW_CLIENT_SECONDS = 10.0
_LEAST_LOGPROB = -9999.0


class Reply(Response):
    """The answer to one request.

    Parameters
    ----------
    engine : Engine
    ask : Ask
    shape : Completion or Chat
    readings : Readings
    stream, usage : bool
        Whether it is sent as it is made, and whether a last chunk counts tokens.

    Raises
    ------
    ApiError
        If the engine takes nothing.
    """

    def __init__(self, engine: Engine, ask: Ask, shape: Completion | Chat, readings: Readings, stream: bool, usage: bool) -> None:
        super().__init__()
        self._engine, self._shape, self._readings, self._stream, self._usage = engine, shape, readings, stream, usage
        self._events: asyncio.Queue = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is there to tell
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job = Job(ask, engine.loaded.tokenizer, emit)
        engine.submit(self._job)

    async def __call__(self, scope, receive, send) -> None:
        gone = asyncio.ensure_future(_until_gone(receive))
        gone.add_done_callback(lambda _: self._events.put_nowait(_GONE))
        try:
            # The engine keeps to the limit by itself; this is for a client that does not take what it asked for.
            async with asyncio.timeout(self._job.ask.seconds + _SLOW_CLIENT_SECONDS):
                await (self._send_events(send) if self._stream else self._send_whole(send))
        except TimeoutError:
            pass
        finally:
            gone.cancel()
            if self._job.finish_reason is None:
                self._engine.cancel(self._job)

    async def _send_whole(self, send) -> None:
        pieces: list[Piece] = []
        while True:
            event = await self._events.get()
            if event is _GONE:
                return
            if isinstance(event, ApiError):
                return await answer_error(event, send)
            if isinstance(event, Outcome):
                break
            pieces.append(event)
        self._keep(event)
        text = "".join(piece.text for piece in pieces)
        logprobs = [one for piece in pieces for one in piece.logprobs]
        body = json.dumps(self._shape.whole(text, logprobs, event)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _send_events(self, send) -> None:
        event = await self._events.get()
        if event is _GONE:
            return
        if isinstance(event, ApiError):  # nothing was sent yet: the status can say it
            return await answer_error(event, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]})
        first = self._shape.first()
        if first is not None:
            await _send_event(send, first)
        while isinstance(event, Piece):
            await _send_event(send, self._shape.piece(event))
            event = await self._events.get()
        if event is _GONE:
            return
        if isinstance(event, ApiError):
            await _send_event(send, event.body)
        else:
            self._keep(event)
            await _send_event(send, self._shape.last(event))
            if self._usage:
                await _send_event(send, self._shape.counts(event))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _keep(self, outcome: Outcome) -> None:
        if outcome.reading is not None:
            self._readings.put(self._shape.id, outcome.reading)


async def _until_gone(receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_event(send, data: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": b"data: " + json.dumps(data).encode() + b"\n\n", "more_body": True})
    # Many events may be there at once: between two of them it can be noticed that nobody takes them any more.
    await asyncio.sleep(0)


class _Shape:
    """What both kinds of answer share."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, token_bytes: TokenBytes, wants_logprobs: bool) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._token_bytes, self._wants_logprobs = token_bytes, wants_logprobs
        self._head = {"created": int(time.time()), "model": model}

    def first(self) -> dict[str, Any] | None:
        """A chunk before the text."""
        return None

    def whole(self, text: str, logprobs: list[TokenLogprob], outcome: Outcome) -> dict[str, Any]:
        """The answer at once."""
        choice = self._choice(text, logprobs, outcome.finish_reason, False)
        return {
            "id": self.id,
            "object": self.kind,
            **self._head,
            "choices": [choice],
            "usage": _usage(outcome),
            "sparsight": _took(outcome),
        }

    def piece(self, piece: Piece) -> dict[str, Any]:
        """A chunk of text."""
        return self._chunk([self._choice(piece.text, list(piece.logprobs), None, True)])

    def last(self, outcome: Outcome) -> dict[str, Any]:
        """The chunk that says how it ended."""
        return {**self._chunk([self._choice("", [], outcome.finish_reason, True)]), "sparsight": _took(outcome)}

    def counts(self, outcome: Outcome) -> dict[str, Any]:
        """The chunk that counts tokens."""
        return {**self._chunk([]), "usage": _usage(outcome)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": self.chunk_kind, **self._head, "choices": choices}

    def _choice(self, text: str, logprobs: list[TokenLogprob], finish_reason: str | None, chunk: bool) -> dict[str, Any]:
        raise NotImplementedError


class Completion(_Shape):
    """A text continued, in OpenAI's shape."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def _choice(self, text, logprobs, finish_reason, chunk):
        return {"index": 0, "text": text, "logprobs": self._logprobs(logprobs), "finish_reason": finish_reason}

    def _logprobs(self, found: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        text = self._token_bytes.text
        likeliest = []
        for one in found:
            names: dict[str, float] = {}
            for token, logprob in one.likeliest:  # the likelier first: tokens of the same text keep its figure
                names.setdefault(text(token), _finite(logprob))
            likeliest.append(names)
        return {
            "tokens": [text(one.token) for one in found],
            "token_logprobs": [_finite(one.logprob) for one in found],
            "top_logprobs": likeliest,
            "text_offset": [one.start for one in found],
        }


class Chat(_Shape):
    """A conversation answered, in OpenAI's shape."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self):
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _choice(self, text, logprobs, finish_reason, chunk):
        said = {"delta": {"content": text} if text or finish_reason is None else {}} if chunk else {"message": _message(text)}
        return {"index": 0, **said, "logprobs": self._logprobs(logprobs), "finish_reason": finish_reason}

    def _logprobs(self, found: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        each = [{**self._named(one.token, one.logprob), "top_logprobs": [self._named(*pair) for pair in one.likeliest]} for one in found]
        return {"content": each, "refusal": None}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._token_bytes.text(token), "logprob": _finite(logprob), "bytes": list(self._token_bytes[token])}


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "refusal": None}


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes this for it."""
    return max(logprob, _LEAST_LOGPROB)


def _usage(outcome: Outcome) -> dict[str, int]:
    new = len(outcome.token_ids)
    return {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": new, "total_tokens": outcome.prompt_tokens + new}


def _took(outcome: Outcome) -> dict[str, Any]:
    """What the answer took: this server's own field."""
    return {
        "share_read": outcome.share_read,
        "bytes_per_token": round(outcome.bytes_per_token),
        "ms_per_token": round(1e3 * outcome.step_seconds, 3),
        "wait_ms": round(1e3 * outcome.wait_seconds, 3),
        "prefill_ms": round(1e3 * outcome.prefill_seconds, 3),
        "total_ms": round(1e3 * outcome.seconds, 3),
    }
