"""Generate text, dense or under a plan: greedy, sampled or by beams, one prompt or a batch, streamed, ended by EOS."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.streamers import TextStreamer

from ..errors import ConfigError, ModelError, TextError
from ..models import LoadedModel
from .apply import Observer, apply
from .cache import held_bytes
from .encode import encode_prompt, end_tokens, padding_token
from .memory import check_memory
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
        Padding not counted.
    finish_reason : {"stop", "length"}
    seconds : float
        Wall time of prefill and decoding, of the whole batch.
    share_read : float
        Tokens read over tokens held, in selecting layers and steps, over the whole batch; 1.0 when dense.
    kv_bytes, index_bytes : int
        Bytes of KV cache and of importance keys at the end: the row's equal share of the batch's, padding and beams included.
    reused_tokens : int
        Prompt tokens that were in the cache already (`Conversation`).
    """

    text: str
    token_ids: list[int] = field(repr=False)
    prompt_tokens: int = 0
    finish_reason: str = "length"
    seconds: float = 0.0
    share_read: float = 1.0
    kv_bytes: int = 0
    index_bytes: int = 0
    reused_tokens: int = 0


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; checked when made. The attributes are parameters of `generate`.

    Raises
    ------
    ConfigError
        For a value out of range, or beams together with sampling.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max-new-tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature != 0 and not 1e-3 <= self.temperature <= 1e3:
            raise ConfigError(f"temperature must be 0 (greedy) or a number from 0.001 to 1000, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p must be in (0, 1], got {self.top_p}")
        if self.beams < 1:
            raise ConfigError(f"beams must be at least 1, got {self.beams}")
        if self.beams > 1 and self.temperature != 0:
            raise ConfigError(
                f"{self.beams} beams and sampling at temperature {self.temperature} were asked for; "
                "give either beams or a temperature"
            )

    def arguments(self) -> dict[str, Any]:
        """Arguments of the `generate` of transformers."""
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.beams}
        if self.temperature == 0:
            return {**settings, "do_sample": False}
        sampling = {"temperature": float(self.temperature), "top_p": float(self.top_p), "top_k": 0}
        return {**settings, "do_sample": True, **sampling}


@overload
def generate(loaded: LoadedModel, prompts: str, plan: Plan | None = None, **settings: Any) -> Generation: ...


@overload
def generate(
    loaded: LoadedModel, prompts: Sequence[str], plan: Plan | None = None, **settings: Any
) -> list[Generation]: ...


def generate(
    loaded: LoadedModel,
    prompts: str | Sequence[str],
    plan: Plan | None = None,
    *,
    chat: bool = False,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    beams: int = 1,
    seed: int = 0,
    stream: Callable[[str], None] | None = None,
    observer: Observer | None = None,
) -> Generation | list[Generation]:
    """Continue or answer a prompt, or several at once.

    Without sampling, a prompt among several gives what it gives alone, up to the rounding of the dtype: prompts are padded on the left, and
    padding is neither attended to nor counted in positions or budgets.

    Parameters
    ----------
    loaded : LoadedModel
    prompts : str or sequence of str
        Raw text to continue (the tokenizer's start token is put before it), or the user's turn when `chat`.
    plan : Plan, optional
        Dense without one.
    chat : bool
        Wrap each prompt in the model's chat template.
    max_new_tokens : int
    temperature : float
        0 is greedy; otherwise tokens are sampled.
    top_p : float
        Nucleus of the sampled distribution, in (0, 1].
    beams : int
        Hypotheses of beam search, 1 for none; not together with sampling.
    seed : int
        Of the sampling; the global random state is left as it was.
    stream : callable, optional
        Gets the text piece by piece as it appears; for one prompt without beams only.
    observer : callable, optional
        Sees every selection (`runtime.apply.Observer`).

    Returns
    -------
    Generation, or list of Generation in the order of the prompts
        A list if `prompts` is a sequence, even of one.

    Raises
    ------
    TextError
        For an empty prompt, or one longer than the model's context allows.
    ConfigError
        For settings out of range or not possible together, no prompts, `chat` with a model that has no chat template, or a cache that would
        not fit into the memory that is free.
    ModelError
        If the logits are NaN.
    """
    decoding = Decoding(max_new_tokens, temperature, top_p, beams, seed)
    alone = isinstance(prompts, str)
    prompts = [prompts] if alone else list(prompts)
    if not prompts:
        raise ConfigError("there is no prompt to continue; give at least one")
    if stream is not None and (len(prompts) > 1 or beams > 1):
        raise ConfigError(
            f"text can be streamed for one prompt without beams, got {len(prompts)} prompts and {beams} beams; leave out stream"
        )
    names = ["the prompt"] if len(prompts) == 1 else [f"prompt {i + 1} of {len(prompts)}" for i in range(len(prompts))]
    rows = [encode_prompt(loaded, prompt, chat, name)[0].tolist() for prompt, name in zip(prompts, names, strict=True)]
    made, _ = decode(loaded, rows, plan, decoding, names=names, stream=stream, observer=observer)
    return made[0] if alone else made


def decode(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    plan: Plan | None,
    decoding: Decoding,
    *,
    cache: Cache | None = None,
    names: Sequence[str] = ("the prompt",),
    stream: Callable[[str], None] | None = None,
    observer: Observer | None = None,
) -> tuple[list[Generation], Cache]:
    """Continue token sequences, and give the cache as it was left.

    Parameters
    ----------
    loaded : LoadedModel
    rows : sequences of int, of any lengths
    plan : Plan or None
    decoding : Decoding
    cache : Cache, optional
        Holds a beginning of the only row, which is not computed again; it is changed in place.
    names : sequence of str
        What each row is called in errors.
    stream, observer
        As for `generate`.

    Raises
    ------
    TextError, ConfigError, ModelError
        As `generate`.
    """
    longest = max(map(len, rows))
    name, context = names[[len(row) for row in rows].index(longest)], loaded.anatomy.context_length
    if longest + decoding.max_new_tokens > context:
        raise TextError(
            f"{name} has {longest} tokens and {decoding.max_new_tokens} are to come, but {loaded.name} has a context of {context}; "
            "shorten the prompt or lower --max-new-tokens"
        )
    sequences = len(rows) * decoding.beams
    check_memory(loaded, plan, sequences, longest + decoding.max_new_tokens, held_bytes(cache))
    if cache is None and plan is None:
        cache = DynamicCache(config=loaded.model.config)
    stops, pad, device = end_tokens(loaded), padding_token(loaded), loaded.model.device
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    started = time.perf_counter()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        apply(loaded, plan, observer) if plan is not None else nullcontext() as run,
        torch.no_grad(),
    ):
        torch.manual_seed(decoding.seed)
        out = loaded.model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            streamer=_Streamer(loaded.tokenizer, stream) if stream is not None else None,
            logits_processor=LogitsProcessorList([_FiniteLogits(loaded.name)]),
            pad_token_id=pad,
            **decoding.arguments(),
        )
    seconds = time.perf_counter() - started
    if run is not None:
        cache = run.cache
    made = [_row(loaded, len(row), new, stops) for row, new in zip(rows, out[:, longest:].tolist(), strict=True)]
    for generation in made:
        generation.seconds = seconds
        generation.kv_bytes = held_bytes(cache) // len(rows)
        if run is not None:
            generation.share_read = run.tokens_read / run.tokens_held if run.tokens_held else 1.0
            generation.index_bytes = cache.index_bytes // len(rows)
    return made, cache


def _row(loaded: LoadedModel, prompt_tokens: int, new: list[int], stops: set[int]) -> Generation:
    """The result of one row; what follows its first end token is padding."""
    end = next((i for i, token in enumerate(new) if token in stops), None)
    return Generation(
        text=loaded.tokenizer.decode(new if end is None else new[: end + 1], skip_special_tokens=True),
        token_ids=new[:end],
        prompt_tokens=prompt_tokens,
        finish_reason="length" if end is None else "stop",
    )


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
