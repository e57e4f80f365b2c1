"""Generate text, dense or under a plan: greedy or sampled, streamed, ended by EOS, with the chat template if asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import TextStreamer

from ..errors import ConfigError, ModelError, TextError
from ..models import LoadedModel
from .apply import Observer, apply
from .plan import Plan


@dataclass
class Generation:
    """What came out, and what it took.

    Attributes
    ----------
    text : str
        New text only.
    token_ids : list of int
        New tokens only, the end token not among them.
    prompt_tokens : int
    finish_reason : {"stop", "length"}
    seconds : float
        Wall time of prefill and decoding.
    share_read : float
        Tokens read over tokens held, in selecting layers and steps; 1.0 when dense.
    kv_bytes, index_bytes : int
        Bytes of KV cache and of importance keys at the end (0 when dense: not tracked).
    """

    text: str
    token_ids: list[int] = field(repr=False)
    prompt_tokens: int = 0
    finish_reason: str = "length"
    seconds: float = 0.0
    share_read: float = 1.0
    kv_bytes: int = 0
    index_bytes: int = 0


def generate(
    loaded: LoadedModel,
    prompt: str,
    plan: Plan | None = None,
    *,
    chat: bool = False,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stream: Callable[[str], None] | None = None,
    observer: Observer | None = None,
) -> Generation:
    """Continue or answer a prompt.

    Parameters
    ----------
    loaded : LoadedModel
    prompt : str
        Raw text to continue, or the user's turn when `chat`.
    plan : Plan, optional
        Dense without one.
    chat : bool
        Wrap the prompt in the model's chat template.
    max_new_tokens : int
    temperature : float
        0 is greedy; otherwise tokens are sampled.
    top_p : float
        Nucleus of the sampled distribution, in (0, 1].
    seed : int
        Of the sampling; the global random state is left as it was.
    stream : callable, optional
        Gets the text piece by piece as it appears.
    observer : callable, optional
        Sees every selection (`runtime.apply.Observer`).

    Raises
    ------
    TextError
        For an empty prompt, or one longer than the model's context allows.
    ConfigError
        For sampling settings out of range, or `chat` with a model that has no chat template.
    ModelError
        If the logits are NaN.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max-new-tokens must be at least 1, got {max_new_tokens}")
    if temperature != 0 and not 1e-3 <= temperature <= 1e3:
        raise ConfigError(f"temperature must be 0 (greedy) or a number from 0.001 to 1000, got {temperature}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top-p must be in (0, 1], got {top_p}")
    ids = encode_prompt(loaded, prompt, chat)
    context = loaded.anatomy.context_length
    if ids.shape[1] + max_new_tokens > context:
        raise TextError(
            f"the prompt has {ids.shape[1]} tokens and {max_new_tokens} are to come, but {loaded.name} has a context of {context}; "
            "shorten the prompt or lower --max-new-tokens"
        )
    settings = (
        {"do_sample": False}
        if temperature == 0
        else {
            "do_sample": True,
            "temperature": float(temperature),
            "top_p": float(top_p),
            "top_k": 0,
        }
    )
    streamer = _Streamer(loaded.tokenizer, stream) if stream is not None else None
    started = time.perf_counter()
    with (
        torch.random.fork_rng(devices=[]),
        apply(loaded, plan, observer) if plan else nullcontext() as run,
        torch.no_grad(),
    ):
        torch.manual_seed(seed)
        out = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            streamer=streamer,
            use_cache=True,
            num_beams=1,
            logits_processor=LogitsProcessorList([_FiniteLogits(loaded.name)]),
            pad_token_id=loaded.tokenizer.pad_token_id if loaded.tokenizer.pad_token_id is not None else 0,
            **settings,
        )
    seconds = time.perf_counter() - started
    new = out[0, ids.shape[1] :].tolist()
    stops = _end_tokens(loaded)
    stopped = bool(new) and new[-1] in stops
    result = Generation(
        text=loaded.tokenizer.decode(new, skip_special_tokens=True),
        token_ids=new[:-1] if stopped else new,
        prompt_tokens=ids.shape[1],
        finish_reason="stop" if stopped else "length",
        seconds=seconds,
    )
    if run is not None:
        result.share_read = run.tokens_read / run.tokens_held if run.tokens_held else 1.0
        result.kv_bytes, result.index_bytes = run.cache.kv_bytes, run.cache.index_bytes
    return result


def encode_prompt(loaded: LoadedModel, prompt: str, chat: bool) -> Tensor:
    """`(1, tokens)` ids of a prompt.

    Raises
    ------
    TextError, ConfigError
    """
    if not prompt.strip():
        raise TextError("the prompt is empty; give some text with --prompt or --prompt-file")
    tokenizer = loaded.tokenizer
    if chat:
        if not tokenizer.chat_template:
            raise ConfigError(f"{loaded.name} has no chat template; leave out --chat")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat, verbose=False)["input_ids"]
    if ids.shape[1] == 0:
        raise TextError("the prompt holds no token; give some text with --prompt or --prompt-file")
    return ids.to(loaded.model.device)


def _end_tokens(loaded: LoadedModel) -> set[int]:
    end = loaded.model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)


class _FiniteLogits(LogitsProcessor):
    """Turns NaN logits into an error instead of silent nonsense."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if torch.isnan(scores).any():
            raise ModelError(
                f"{self._name} gave NaN logits at token {input_ids.shape[1]}; its weights are damaged or the dtype overflows"
            )
        return scores


class _Streamer(TextStreamer):
    """Hands finished pieces of new text to a callable."""

    def __init__(self, tokenizer, emit: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._emit(text)
