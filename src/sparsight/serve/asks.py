"""From a request to what the engine is asked: text to tokens, the plan, and the limits."""

from __future__ import annotations

import secrets
from pathlib import Path

from ..errors import SparsightError
from ..models import LoadedModel
from ..runtime.encode import encode_chat, encode_prompt
from ..runtime.generation import Decoding
from .errors import ApiError
from .job import Ask
from .methods import Methods
from .readings import reading_bytes
from .schemas import ChatRequest, CompletionRequest, Request
from .settings import Settings

DEFAULT_NEW_TOKENS = 16
"""OpenAI's, of a text to continue; a conversation is answered as far as limits and context allow."""


def served_name(loaded: LoadedModel) -> str:
    """What the model is called in requests: not where it lies."""
    return Path(loaded.name).expanduser().resolve().name if Path(loaded.name).expanduser().exists() else loaded.name


class Asks:
    """Turns requests into asks.

    Parameters
    ----------
    loaded : LoadedModel
    methods : Methods
    settings : Settings
    """

    def __init__(self, loaded: LoadedModel, methods: Methods, settings: Settings) -> None:
        self.loaded, self.methods, self.settings = loaded, methods, settings
        self.model = served_name(loaded)

    def check_model(self, name: str) -> None:
        """Raise `ApiError` unless the model is the one that is served."""
        if name != self.model:
            raise ApiError(404, f"the model {name[:80]!r} is not served here; the one that is: {self.model}", "model", "model_not_found")

    def completion(self, request: CompletionRequest) -> Ask:
        """The ask of a text to continue.

        Raises
        ------
        ApiError
        """
        self.check_model(request.model)
        ids = self._prompt_ids(request.prompt)
        return self._ask(request, ids, "prompt", request.max_tokens or DEFAULT_NEW_TOKENS, request.logprobs)

    def chat(self, request: ChatRequest) -> Ask:
        """The ask of a conversation to answer.

        Raises
        ------
        ApiError
        """
        self.check_model(request.model)
        messages = [{"role": message.role, "content": message.text} for message in request.messages]
        self._check_length(sum(len(message["content"]) for message in messages), "messages")
        try:
            ids = encode_chat(self.loaded, messages)[0].tolist()
        except SparsightError as error:
            raise ApiError(400, str(error), "messages") from error
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        return self._ask(request, ids, "messages", request.max_completion_tokens or request.max_tokens, logprobs)

    def _prompt_ids(self, prompt: str | list[str] | list[int]) -> list[int]:
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            vocabulary = self.loaded.anatomy.vocab_size
            if any(not 0 <= token < vocabulary for token in prompt):
                raise ApiError(400, f"prompt holds a token that is not in the vocabulary of {vocabulary}", "prompt")
            return prompt
        if isinstance(prompt, list):
            if len(prompt) != 1:
                raise ApiError(
                    400, f"a request continues one prompt, got {len(prompt)}; send several requests, at once if you like", "prompt"
                )
            prompt = prompt[0]
        self._check_length(len(prompt), "prompt")
        try:
            return encode_prompt(self.loaded, prompt, False)[0].tolist()
        except SparsightError as error:
            raise ApiError(400, str(error), "prompt") from error

    def _check_length(self, characters: int, param: str) -> None:
        """Refuse what is far too long before it is tokenised: hardly a text has more than 16 characters a token."""
        if characters > 16 * self._most_prompt + 4096:
            raise _too_long(f"{param} has {characters:,} characters, far more than {self._most_prompt:,} tokens hold; shorten it", param)

    @property
    def _most_prompt(self) -> int:
        most = self.loaded.anatomy.context_length - 1
        return most if self.settings.max_prompt_tokens is None else min(most, self.settings.max_prompt_tokens)

    def _ask(self, request: Request, ids: list[int], param: str, new: int | None, logprobs: int | None) -> Ask:
        context = self.loaded.anatomy.context_length
        if len(ids) > self._most_prompt:
            raise _too_long(f"{param} has {len(ids):,} tokens, but at most {self._most_prompt:,} are taken; shorten it", param)
        limit = self.settings.max_new_tokens or context
        if new is not None and new > limit:
            raise ApiError(400, f"max_tokens can be at most {limit:,}, got {new:,}; lower it", "max_tokens")
        if new is not None and len(ids) + new > context:
            both = f"{param} has {len(ids):,} tokens and {new:,} are to come"
            raise _too_long(f"{both}, but {self.model} has a context of {context:,}; lower max_tokens or shorten it", param)
        new = min(limit, context - len(ids)) if new is None else new
        plan = self.methods.plan(request.select, request.budget)
        if request.reading:
            self._check_reading(len(ids), new, plan)
        temperature = 1.0 if request.temperature is None else request.temperature
        seed = secrets.randbits(62) if request.seed is None else request.seed
        try:
            decoding = Decoding(new, temperature, 1.0 if request.top_p is None else request.top_p, seed=seed)
        except SparsightError as error:
            raise ApiError(400, str(error), "temperature") from error
        return Ask(ids, decoding, plan, request.stops, logprobs, bool(request.reading), self.settings.request_seconds)

    def _check_reading(self, prompt: int, new: int, plan) -> None:
        anatomy = self.loaded.anatomy
        budget = 0 if plan is None else plan.budget.while_generating(prompt + new)
        needed = reading_bytes(anatomy, len(anatomy.full_attention), prompt, new, budget, self.loaded.model.dtype.itemsize)
        if needed > self.settings.reading_bytes:
            kept = f"but {self.settings.reading_bytes / 1e6:.0f} MB are kept"
            raise ApiError(
                400,
                f"what {new:,} tokens read takes up to {needed / 1e6:.0f} MB, {kept}; lower max_tokens, or leave out reading",
                "reading",
            )


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param, "context_length_exceeded")
