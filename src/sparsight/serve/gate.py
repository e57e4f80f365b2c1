"""What stands before the application: who may ask, how large, slow and many requests may be; and the headers of every answer."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .errors import ApiError, draining, overloaded
from .settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

OPEN_PATHS = ("/", "/health", "/page.css", "/page.js")
"""Answered without a key: nothing in them is anybody's."""

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
)


class Gate:
    """An ASGI application around another.

    Parameters
    ----------
    app : ASGI application
    settings : Settings
    is_draining : callable
        Whether nothing new is taken.

    Attributes
    ----------
    requests : int
        Requests with a body that are being answered.
    """

    def __init__(self, app, settings: Settings, is_draining: Callable[[], bool]) -> None:
        self._app, self._settings, self._is_draining = app, settings, is_draining
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self._app(scope, receive, send)
            return

        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            self._check(scope)
            if scope["method"] not in ("POST", "PUT", "PATCH"):
                await self._app(scope, receive, sending)
                return
            if self._is_draining():
                raise draining()
            if self.requests >= (most := self._settings.max_running + self._settings.max_waiting):
                raise overloaded(most)
            self.requests += 1
            try:
                await self._app(scope, await self._with_body(scope, receive), sending)
            finally:
                self.requests -= 1
        except ApiError as error:
            await answer_error(error, sending, close=scope["method"] == "POST")
        except Gone:
            pass

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._key is None:
            # A page of another site that has its name point here would otherwise be answered as if it were this one.
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
            if name not in _LOCAL_NAMES:
                raise ApiError(403, "the server answers to localhost and 127.0.0.1; with an API key to any name", code="host_not_allowed")
        elif scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
                raise ApiError(401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key")
        if scope["method"] == "POST" and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise ApiError(415, "a request is JSON; send it with Content-Type: application/json", code="unsupported_media_type")

    async def _with_body(self, scope: Scope, receive: Receive) -> Receive:
        """A `receive` that gives the whole body, read within the limits of size and time."""
        most, declared = self._settings.max_body_bytes, dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            await _discard(receive, most)
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        if message.get("more_body", False):
                            await _discard(receive, most)
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            seconds = self._settings.body_seconds
            raise ApiError(408, f"the request did not arrive within {seconds:g} seconds; send it faster", code="request_timeout") from None
        bodies = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def replay() -> dict[str, Any]:
            return bodies.pop() if bodies else await receive()

        return replay


class Gone(Exception):
    """Whoever asked has gone."""


async def _discard(receive: Receive, most: int) -> None:
    """Take in some of what is too large: a connection closed on unread bytes would lose the answer."""
    size = 0
    try:
        async with asyncio.timeout(2):
            while size < 16 * most:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        pass


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"a request can have at most {most:,} bytes; shorten it", code="request_too_large")


async def answer_error(error: ApiError, send: Send, close: bool = False) -> None:
    """Send an error, and close the connection where the rest of a request may still be on its way."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    if close:
        headers["connection"] = "close"
    start = {"type": "http.response.start", "status": error.status}
    await send({**start, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": body})
