"""The routes of the server."""

from __future__ import annotations

import base64
import json
import time
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from .. import __version__
from .asks import Asks
from .engine import Engine
from .errors import ApiError, draining
from .gate import Gate
from .metrics import CONTENT_TYPE, Metrics
from .readings import Reading, Readings
from .replies import Chat, Completion, Reply
from .schemas import ChatRequest, CompletionRequest
from .schemas import Request as Asked
from .text import TokenBytes

_PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
_ERROR = {
    "description": "What is wrong.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")},
                    }
                },
            }
        }
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = {status: _ERROR for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)}
_ANSWER = {**_ERRORS, 422: {"description": "Never sent: what is wrong with a request is said with 400."}}


class Json(Response):
    """JSON in ASCII: a client's text may hold what UTF-8 has no bytes for."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def make_app(engine: Engine, asks: Asks) -> Gate:
    """The ASGI application of a server.

    Parameters
    ----------
    engine : Engine
    asks : Asks

    Returns
    -------
    Gate
        Around a FastAPI application.
    """
    settings, anatomy = engine.settings, engine.loaded.anatomy
    readings, token_bytes = Readings(settings.reading_bytes), TokenBytes(engine.loaded.tokenizer)
    metrics, started = Metrics(engine, readings), int(time.time())
    # The pages that FastAPI has for its description load scripts from another host.
    app = FastAPI(title="Sparsight", version=__version__, docs_url=None, redoc_url=None, default_response_class=Json)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)

    def model() -> dict[str, Any]:
        own = {
            "methods": asks.methods.names,
            "default_method": asks.methods.default,
            "default_budget": str(asks.methods.budget),
            "context_length": anatomy.context_length,
            "max_prompt_tokens": settings.max_prompt_tokens,
            "max_new_tokens": settings.max_new_tokens,
            "weights": engine.decoder.format,
            "chat": bool(engine.loaded.tokenizer.chat_template),
        }
        return {"id": asks.model, "object": "model", "created": started, "owned_by": "sparsight", "sparsight": own}

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> Json:
        """The model that is served."""
        return Json({"object": "list", "data": [model()]})

    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    async def one_model(name: str) -> Json:
        """The model that is served, by its name."""
        asks.check_model(name)
        return Json(model())

    async def reply(request: Asked, ask_for, shape: Completion | Chat) -> Reply:
        # A long text takes a while to become tokens, and others are not to wait for that.
        ask = await run_in_threadpool(ask_for, request)
        counts = request.stream_options is not None and bool(request.stream_options.include_usage)
        return Reply(engine, ask, shape, readings, bool(request.stream), counts)

    @app.post("/v1/completions", responses=_ANSWER)
    async def completions(request: CompletionRequest) -> Response:
        """Continue a text."""
        return await reply(request, asks.completion, Completion(asks.model, token_bytes, request.logprobs is not None))

    @app.post("/v1/chat/completions", responses=_ANSWER)
    async def chat_completions(request: ChatRequest) -> Response:
        """Answer a conversation."""
        return await reply(request, asks.chat, Chat(asks.model, token_bytes, bool(request.logprobs)))

    @app.get("/v1/readings/{answer}", responses=_ERRORS)
    def reading(answer: str) -> Json:
        """What is known of an answer that was asked for with `reading: true`."""
        found = _kept(readings, answer)
        texts = token_bytes.texts(found.ids)
        return Json(
            {
                "id": answer,
                "tokens": texts,
                "prompt_tokens": found.prompt_tokens,
                "new_tokens": len(found.ids) - found.prompt_tokens,
                "layers": list(found.layers),
                "kv_heads": anatomy.kv_heads,
                "method": found.method,
                "budget": found.budget,
            }
        )

    @app.get("/v1/readings/{answer}/{token}", responses=_ERRORS)
    def reading_of_token(answer: str, token: int) -> Json:
        """What generated token number `token` read, and the true attention in its place, by layer and KV head."""
        found = _kept(readings, answer)
        new = len(found.ids) - found.prompt_tokens
        if not 0 <= token < new:
            raise ApiError(404, f"the answer has {new} tokens, counted from 0, not one number {token}", "token", "token_not_found")
        weights = found.attention(token)
        shown = {
            "length": found.prompt_tokens + token,
            "read": [None if layer is None else [one.tolist() for one in layer] for layer in found.reads[token]],
            "read_mass": None if weights is None else np.round(found.read_mass(token, weights).astype(float), 5).tolist(),
            "attention": None if weights is None else base64.b64encode(np.round(weights * 65535).astype("<u2").tobytes()).decode(),
            "attention_encoding": "base64, uint16, little endian, 65535 for 1; (layers, kv_heads, length)",
        }
        return Json(shown)

    @app.get("/health", responses=_ERRORS)
    async def health() -> Json:
        """Whether requests are taken."""
        if engine.draining:
            raise draining()
        return Json({"status": "ok"})

    @app.get("/metrics", responses=_ERRORS)
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    _add_page(app)
    return Gate(app, settings, lambda: engine.draining)


def _add_page(app: FastAPI) -> None:
    folder = files("sparsight") / "serve" / "page"
    for path, (name, kind) in _PAGE.items():
        app.add_route(path, _file((folder / name).read_bytes(), kind), include_in_schema=False)


def _file(data: bytes, kind: str):
    async def give(request: Request) -> Response:
        return Response(data, media_type=kind)

    return give


def _kept(readings: Readings, answer: str) -> Reading:
    found = readings.get(answer)
    if found is None:
        message = "nothing is kept of an answer of this name; ask with reading: true, and soon: only the last ones are kept"
        raise ApiError(404, message, "answer", "reading_not_found")
    return found


async def _api_error(request: Request, error: Exception) -> Json:
    return Json(error.body, error.status, error.headers)


async def _invalid(request: Request, error: Exception) -> Json:
    found = error.errors()
    # Where a field may be of several kinds, the error that lies deepest is of the kind that was meant.
    first = max((one for one in found if one["loc"][:2] == found[0]["loc"][:2]), key=lambda one: len(one["loc"]))
    place = [str(part) for part in first["loc"] if part not in ("body", "path")]
    if first["type"] == "json_invalid":
        return Json(ApiError(400, "the request is not JSON; check its quotes and commas", code="invalid_json").body, 400)
    names = [
        part for part in place if part.isidentifier() and not part.startswith(("str", "list", "function", "constrained", "int", "float"))
    ]
    param = ".".join(names[:3]) or None
    if first["type"] == "extra_forbidden":
        return Json(
            ApiError(400, f"the field {place[-1][:80]!r} is not known here; leave it out", place[-1][:80], "unknown_field").body, 400
        )
    return Json(ApiError(400, f"{param or 'the request'}: {first['msg']}", param, "invalid_value").body, 400)


async def _http_error(request: Request, error: Exception) -> Json:
    said = {404: "there is nothing at this address", 405: "this address takes another method"}.get(error.status_code, str(error.detail))
    code = "not_found" if error.status_code == 404 else None
    return Json(ApiError(error.status_code, said, code=code).body, error.status_code, error.headers)


async def _fault(request: Request, error: Exception) -> Json:
    # uvicorn writes the error itself into the log.
    return Json(ApiError(500, "the server failed to answer; its log says why", code="internal_error").body, 500)
