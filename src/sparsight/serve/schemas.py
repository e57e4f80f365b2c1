"""What a request may hold: OpenAI's fields, those of their values that are kept to, and the fields of this server's own.

A field that would change the answer and is not kept to is refused, not passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .errors import ApiError

_LARGEST_SEED = 2**63 - 1

_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((None, 1), "one answer is made for a request"),
    "best_of": ((None, 1), "one answer is made for a request"),
    "echo": ((None, False), "the prompt is not given back"),
    "suffix": ((None,), "text is continued, not filled in"),
    "presence_penalty": ((None, 0), "there are no penalties"),
    "frequency_penalty": ((None, 0), "there are no penalties"),
    "logit_bias": ((None, {}), "logits are not biased"),
    "tools": ((None, []), "no tools are called"),
    "tool_choice": ((None, "none", "auto"), "no tools are called"),
    "parallel_tool_calls": ((None, True, False), "no tools are called"),
    "functions": ((None, []), "no functions are called"),
    "function_call": ((None, "none", "auto"), "no functions are called"),
    "response_format": ((None, {"type": "text"}), "answers are plain text"),
    "modalities": ((None, ["text"]), "answers are plain text"),
    "audio": ((None,), "answers are plain text"),
    "prediction": ((None,), "predicted output is not used"),
    "reasoning_effort": ((None,), "the effort cannot be chosen"),
    "verbosity": ((None,), "the length of answers is not steered"),
    "web_search_options": ((None,), "nothing is searched"),
}
"""Fields of OpenAI's that are accepted with the values that mean what this server does."""

_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
"""Fields that do not change the answer."""


def _real_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_real_text)]
Stop = Annotated[str, AfterValidator(_real_text), Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    """How a streamed answer ends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="Send one more chunk at the end, with the counts of tokens.")
    include_obfuscation: Literal[False] | None = None


class Request(BaseModel):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Text = Field(min_length=1, max_length=512)
    max_tokens: int | None = Field(None, ge=1, description="Tokens of the answer at most.")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 is greedy; 1 is the default.")
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, le=_LARGEST_SEED, description="Of the sampling; without one it is random.")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="Text that ends the answer and is not part of it."
    )
    stream: bool | None = Field(None, description="Send the answer as it is made, as server-sent events.")
    stream_options: StreamOptions | None = None
    select: Annotated[Text, Field(max_length=256)] | None = Field(
        None, description="Method that chooses the cached tokens to read; `dense` reads all."
    )
    budget: Annotated[str, Field(max_length=40)] | int | float | None = Field(
        None, description="Tokens each KV head reads: a fraction such as 1/8, or a number of tokens."
    )
    reading: bool | None = Field(None, description="Keep what each token read, for /v1/readings/{id}.")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        """Take out what means nothing here, and refuse what would mean something."""
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in _ONLY and name not in cls.model_fields:
                values, why = _ONLY[name]
                if not any(type(value) is type(one) and value == one for one in (*values, *(float(v) for v in values if type(v) is int))):
                    allowed = " or ".join(_shown(v) for v in values if v is not None)
                    raise ApiError(400, f"{name} can only be {allowed or 'left out'}: {why}", name)
            elif name not in _IGNORED:
                kept[name] = value
        return kept

    @model_validator(mode="after")
    def _together(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options are for streamed answers; add stream: true, or leave them out", "stream_options")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


class CompletionRequest(Request):
    """A text to continue."""

    prompt: Text | list[Text] | list[int] = Field(description="Text, a list with one text, or the tokens of one.")
    logprobs: int | None = Field(None, ge=0, le=5, description="Give log-probabilities, and those of so many likeliest tokens.")


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Request):
    """A conversation to answer."""

    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(None, ge=1, description="As max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _names(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true; add it, or leave top_logprobs out", "top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ApiError(400, "max_tokens and max_completion_tokens are the same and differ; give one", "max_completion_tokens")
        return self
