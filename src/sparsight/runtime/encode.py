"""Text to tokens: a prompt to continue, or the messages of a conversation; and the tokens that end and that fill a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import ConfigError, TextError
from ..models import LoadedModel


def encode_prompt(loaded: LoadedModel, prompt: str, chat: bool, name: str = "the prompt") -> Tensor:
    """`(1, tokens)` ids of a prompt, on the model's device.

    A raw prompt gets the start token of the tokenizer. A chat template writes its own.

    Parameters
    ----------
    loaded : LoadedModel
    prompt : str
    chat : bool
        The prompt is the user's turn of a conversation.
    name : str
        What the prompt is called in errors.

    Raises
    ------
    TextError
        For a prompt without text.
    ConfigError
        If the model has no chat template.
    """
    if not isinstance(prompt, str):
        raise TextError(f"{name} is a {type(prompt).__name__}, not text; give a str")
    if not prompt.strip():
        raise TextError(f"{name} is empty; give some text with --prompt or --prompt-file")
    if chat:
        return encode_chat(loaded, [{"role": "user", "content": prompt}])
    return _encode(loaded, prompt, True, name)


def encode_chat(loaded: LoadedModel, messages: Sequence[Mapping[str, str]]) -> Tensor:
    """`(1, tokens)` ids of a conversation up to where the model's answer begins.

    Parameters
    ----------
    loaded : LoadedModel
    messages : sequence of mapping
        Each with `role` ("system", "user", "assistant") and `content`.

    Raises
    ------
    ConfigError
        If the model has no chat template, or its template does not allow these messages.
    """
    check_chat(loaded)
    from jinja2 import TemplateError

    try:
        text = loaded.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages[:3])
        raise ConfigError(
            f"the chat template of {loaded.name} does not take these messages ({roles}, ...): {error}; "
            "leave out the system message, or let user and assistant take turns"
        ) from error
    return _encode(loaded, text, False, "the conversation")


def check_chat(loaded: LoadedModel) -> None:
    """Raise `ConfigError` if the model has no chat template."""
    if not loaded.tokenizer.chat_template:
        raise ConfigError(f"{loaded.name} has no chat template; leave out --chat, or take a model made for chat")


def end_tokens(loaded: LoadedModel) -> set[int]:
    """Tokens that end a text, of the model's generation config."""
    end = loaded.model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)


def padding_token(loaded: LoadedModel) -> int:
    """A token to pad with. It is never attended to, but the model must have an embedding of it.

    The pad token of the tokenizer, if it is one of the model's; otherwise an end token, or 0.
    """
    choices = (loaded.tokenizer.pad_token_id, *sorted(end_tokens(loaded)))
    return next((token for token in choices if token is not None and 0 <= token < loaded.anatomy.vocab_size), 0)


def _encode(loaded: LoadedModel, text: str, special: bool, name: str) -> Tensor:
    ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=special, verbose=False)["input_ids"]
    if ids.shape[1] == 0:
        raise TextError(f"{name} holds no token; give some text with --prompt or --prompt-file")
    return ids.long().to(loaded.model.device)
