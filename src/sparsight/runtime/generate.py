"""Generate text, dense or under a plan: greedy, sampled or by beams, one prompt or a batch, streamed, ended by EOS.

On a CPU the native decoder does it where it can, else the Hugging Face graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import overload

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache, DynamicCache

from ..activations import ActivationMethod
from ..errors import ConfigError, ModelError, TextError
from ..models import LoadedModel
from .activations import apply_activations, check_activations
from .apply import Observer, apply
from .cache import held_bytes
from .decoder import DecoderSequence
from .decoder.loop import decode_native
from .encode import encode_prompt, end_tokens, padding_token
from .generation import Decoding, Generation, Streamer, finished_row
from .memory import check_memory
from .plan import Plan
from .runtimes import choose_runtime
from .units import UnitPlan, apply_units, check_units


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str too; this one comes first
    loaded: LoadedModel,
    prompts: str,
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
    runtime: str = "auto",
    weights: str | None = None,
    threads: int | None = None,
    units: UnitPlan | None = None,
    activations: ActivationMethod | None = None,
) -> Generation: ...


@overload
def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
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
    runtime: str = "auto",
    weights: str | None = None,
    threads: int | None = None,
    units: UnitPlan | None = None,
    activations: ActivationMethod | None = None,
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
    runtime: str = "auto",
    weights: str | None = None,
    threads: int | None = None,
    units: UnitPlan | None = None,
    activations: ActivationMethod | None = None,
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
        Of the sampling; the global random state is left as it was. In the native decoder each prompt draws for itself, the i-th from
        `seed + i`; the two runtimes draw differently.
    stream : callable, optional
        Gets the text piece by piece as it appears; for one prompt without beams only.
    observer : callable, optional
        Sees every selection (`runtime.apply.Observer`).
    runtime : {"auto", "native", "hf"}
        `native` is the CPU decoder, `hf` the Hugging Face graph; `auto` takes the former where it can, and `Generation.note` says why not.
    weights : {"fp32", "bf16", "int8", "int4"}, optional
        What the native decoder keeps the weights in; by default the model's dtype, or the bits of the GGUF file it came from.
    threads : int, optional
        Of the native decoder; by default as many as PyTorch uses.
    units : UnitPlan, optional
        Heads and neurons that decode steps leave out; goes together with `plan`.
    activations : ActivationMethod, optional
        Cuts of matrices by their inputs in decode steps; goes together with both.

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
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ConfigError("there is no prompt to continue; give at least one")
    if stream is not None and (len(prompts) > 1 or beams > 1):
        raise ConfigError(
            f"text can be streamed for one prompt without beams, got {len(prompts)} prompts and {beams} beams; leave out stream"
        )
    names = ["the prompt"] if len(prompts) == 1 else [f"prompt {i + 1} of {len(prompts)}" for i in range(len(prompts))]
    rows = [encode_prompt(loaded, prompt, chat, name)[0].tolist() for prompt, name in zip(prompts, names, strict=True)]
    made, _ = decode(
        loaded,
        rows,
        plan,
        decoding,
        names=names,
        stream=stream,
        observer=observer,
        runtime=runtime,
        weights=weights,
        threads=threads,
        units=units,
        activations=activations,
    )
    return made[0] if alone else made


def decode(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    plan: Plan | None,
    decoding: Decoding,
    *,
    cache: Cache | DecoderSequence | None = None,
    names: Sequence[str] = ("the prompt",),
    stream: Callable[[str], None] | None = None,
    observer: Observer | None = None,
    runtime: str = "auto",
    weights: str | None = None,
    threads: int | None = None,
    units: UnitPlan | None = None,
    activations: ActivationMethod | None = None,
) -> tuple[list[Generation], Cache | DecoderSequence]:
    """Continue token sequences, and give the cache as it was left.

    Parameters
    ----------
    loaded : LoadedModel
    rows : sequences of int, of any lengths
    plan : Plan or None
    decoding : Decoding
    cache : Cache or DecoderSequence, optional
        Holds a beginning of the only row, which is not computed again; it is changed in place. It is of the runtime that gave it.
    names : sequence of str
        What each row is called in errors.
    stream, observer, runtime, weights, threads, units, activations
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
    if units is not None:
        check_units(loaded, units)
    if activations is not None:
        check_activations(loaded, activations)
        if activations.guided and units is not None and units.sparsity.neurons:
            raise ConfigError(f"{activations.name!r} and {units.units.name!r} both choose the neurons; leave one of the two out")
    decoder, note = choose_runtime(loaded, plan, decoding.beams, runtime, weights, threads, units, activations)
    held = cache.kv_bytes if isinstance(cache, DecoderSequence) else held_bytes(cache)
    check_memory(loaded, plan, len(rows) * decoding.beams, longest + decoding.max_new_tokens, held)
    if decoder is not None:
        made, sequence = decode_native(decoder, rows, plan, decoding, cache, stream, observer, units, activations)
        return made, sequence
    made, cache = _decode_in_graph(loaded, rows, longest, plan, decoding, cache, stream, observer, units, activations)
    for generation in made:
        generation.note = note
    return made, cache


def _decode_in_graph(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    longest: int,
    plan: Plan | None,
    decoding: Decoding,
    cache: Cache | None,
    stream: Callable[[str], None] | None,
    observer: Observer | None,
    units: UnitPlan | None,
    activations: ActivationMethod | None,
) -> tuple[list[Generation], Cache]:
    if cache is None and plan is None:
        cache = DynamicCache(config=loaded.model.config)
    stops, pad, device = end_tokens(loaded), padding_token(loaded), loaded.model.device
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    started = time.perf_counter()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        apply(loaded, plan, observer) if plan is not None else nullcontext() as run,
        apply_activations(loaded, activations) if activations is not None else nullcontext() as cuts,
        apply_units(loaded, units, mask == 0) if units is not None else nullcontext() as left_out,
        torch.no_grad(),
    ):
        torch.manual_seed(decoding.seed)
        out = loaded.model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            streamer=Streamer(loaded.tokenizer, stream) if stream is not None else None,
            logits_processor=LogitsProcessorList([_FiniteLogits(loaded.name)]),
            pad_token_id=pad,
            **decoding.arguments(),
        )
    seconds = time.perf_counter() - started
    if run is not None:
        cache = run.cache
    made = [finished_row(loaded, len(row), new, stops) for row, new in zip(rows, out[:, longest:].tolist(), strict=True)]
    for generation in made:
        generation.seconds = seconds
        generation.kv_bytes = held_bytes(cache) // len(rows)
        if cuts is not None:
            generation.sparsity = cuts.sparsity
        if left_out is not None:
            generation.heads_skipped, generation.neurons_skipped = (left_out.tally.dropped(kind) for kind in ("heads", "neurons"))
            generation.pack_seconds = left_out.pack_seconds
        if run is not None:
            generation.share_read = run.tokens_read / run.tokens_held if run.tokens_held else 1.0
            generation.index_bytes = cache.index_bytes // len(rows)
    return made, cache


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
