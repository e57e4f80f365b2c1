"""Generation in the native decoder: prefill each prompt, then one step a token for all sequences that go on."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ...activations import ActivationMethod
from ...ops import UNUSED
from ..apply import Observer
from ..encode import end_tokens
from ..generation import Decoding, Generation, Streamer, finished_row
from ..plan import Plan
from .activations import ActivationCounts, NativeActivations
from .decoder import Decoder, Step
from .sampling import Sampler
from .sequence import DecoderSequence
from .unit_rows import UnitRows

if TYPE_CHECKING:
    from ..units import UnitPlan

_MADE: weakref.WeakKeyDictionary[Decoder, weakref.WeakKeyDictionary[ActivationMethod, NativeActivations]] = weakref.WeakKeyDictionary()


def decode_native(
    decoder: Decoder,
    rows: Sequence[Sequence[int]],
    plan: Plan | None,
    decoding: Decoding,
    cache: DecoderSequence | None = None,
    stream: Callable[[str], None] | None = None,
    observer: Observer | None = None,
    unit_plan: UnitPlan | None = None,
    activations: ActivationMethod | None = None,
) -> tuple[list[Generation], DecoderSequence]:
    """Continue token sequences.

    Parameters
    ----------
    decoder : Decoder
    rows : sequences of int, of any lengths
    plan : Plan or None
    decoding : Decoding
        Without beams.
    cache : DecoderSequence, optional
        Holds a beginning of the only row; it is changed in place.
    stream, observer
        As for `runtime.generate`; an observer gets the rows that go on, `(rows, kv_heads, 1, budget)`.
    unit_plan : UnitPlan, optional
        Made of pieces.
    activations : ActivationMethod, optional
        Not together with `unit_plan`.

    Returns
    -------
    list of Generation, and the last row's sequence
    """
    loaded, stops = decoder.loaded, end_tokens(decoder.loaded)
    streamer = Streamer(loaded.tokenizer, stream) if stream is not None else None
    started = time.perf_counter()
    sequences = [decoder.new_sequence() if cache is None else cache for _ in rows]
    samplers = [Sampler(decoding, i) for i in range(len(rows))]
    new: list[list[int]] = [[] for _ in rows]
    if streamer is not None:
        streamer.put(torch.tensor(rows[0]))  # the prompt, which it leaves out
    left_out = UnitRows(decoder, unit_plan)
    cuts = None if activations is None else native_activations(decoder, activations)
    counts = None if cuts is None else ActivationCounts(cuts)
    for row, sequence, sampler, made in zip(rows, sequences, samplers, new, strict=True):
        with left_out.watch() as by_graph:
            logits = decoder.prefill(sequence, row[sequence.length :], len(row) + decoding.max_new_tokens, by_graph)
        left_out.choose()
        made.append(sampler.draw(logits))
    read = held = 0
    while True:
        if streamer is not None:
            streamer.put(torch.tensor(new[0][-1:]))
        going = [i for i, made in enumerate(new) if made[-1] not in stops and len(made) < decoding.max_new_tokens]
        if not going:
            break
        last, units = [new[i][-1] for i in going], left_out.of(going)
        step = decoder.step([sequences[i] for i in going], last, _of_rows(plan, going), observer is not None, units, cuts)
        if counts is None:
            left_out.count(step)
        else:
            counts.add(step)
        for i, logits in zip(going, step.logits, strict=True):
            new[i].append(samplers[i].draw(logits))
        if plan is not None and step.budgets != step.lengths:
            heads = len(plan.selector.layers) * loaded.anatomy.kv_heads
            read += heads * sum(step.budgets)
            held += heads * sum(step.lengths)
            if observer is not None:
                _show(step, plan, loaded.anatomy.kv_heads, observer)
    if streamer is not None:
        streamer.end()
    seconds = time.perf_counter() - started
    made = [finished_row(loaded, len(row), tokens, stops) for row, tokens in zip(rows, new, strict=True)]
    for generation, sequence in zip(made, sequences, strict=True):
        generation.seconds, generation.runtime, generation.weights = seconds, "native", decoder.format
        generation.kv_bytes, generation.index_bytes = sequence.kv_bytes, sequence.index_bytes
        generation.share_read = read / held if held else 1.0
        left_out.tell(generation)
        generation.sparsity = 0.0 if counts is None else cuts.sparsity(counts.shares)
    return made, sequences[-1]


def native_activations(decoder: Decoder, method: ActivationMethod) -> NativeActivations:
    """The cuts of a method for a decoder, made once.

    Raises
    ------
    ConfigError
    """
    made = _MADE.setdefault(decoder, weakref.WeakKeyDictionary())
    if method not in made:
        made[method] = NativeActivations(decoder, method)
    return made[method]


def _of_rows(plan: Plan | None, going: list[int]) -> Plan | None:
    """The plan for the rows that go on: each keeps its own budget."""
    if plan is None or len(plan.budgets) == 1:
        return plan
    return Plan(plan.selector, tuple(plan.budgets[i] for i in going), plan.rule)


def _show(step: Step, plan: Plan, kv_heads: int, observer: Observer) -> None:
    widest = max(step.budgets)
    for layer in plan.selector.layers:
        rows = [
            heads if heads is not None else list(range(step.lengths[i // kv_heads])) for i, heads in enumerate(step.reads[layer])
        ]
        indices = torch.tensor([row + [UNUSED] * (widest - len(row)) for row in rows])
        observer(max(step.lengths), layer, indices.view(-1, kv_heads, 1, widest))
