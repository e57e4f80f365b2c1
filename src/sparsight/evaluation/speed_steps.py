"""What is timed at one context: steps of the native decoder over one filled cache, and steps of a rival.

Every candidate steps at the same context for as long as it is asked to, so that candidates can take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from ..activations import ActivationMethod
from ..runtime import Plan
from ..runtime.decoder import ActivationCounts, Decoder, DecoderSequence, NativeUnits
from ..runtime.decoder.loop import native_activations
from ..runtime.units import Choices, PromptRecord, UnitPlan, recorded, unit_pieces
from ..units import Prompt
from .rivals import Rival

PIECE = 256
"""Tokens prefilled between two signs of progress."""

Advance = Callable[[int], None]


class Candidate(Protocol):
    """Something whose decode steps are timed.

    Attributes
    ----------
    identity : dict
        The fields of its row that say what it is.
    """

    identity: dict[str, Any]

    def at(self, context: int) -> None:
        """Be ready for steps that attend to `context` tokens, their own included; contexts come from long to short."""
        ...

    def sample(self, steps: int) -> list[float]:
        """Seconds a token of `steps` steps, after one that is not counted: the engine before has had the cache."""
        ...

    def bytes_per_token(self, context: int) -> float: ...


class FilledCache:
    """The keys and values of one decoder, which all its candidates read.

    Parameters
    ----------
    decoder : Decoder
    ids : sequence of int
        As many tokens as the longest context.
    run : int
        Steps that are made at a time, the last of which attends to the context. Every candidate writes over the tokens of a run before it
        reads them, so that none sees what another has written.
    random : bool
        Fill with random numbers instead of a prefill.
    """

    def __init__(self, decoder: Decoder, ids: Sequence[int], run: int = 1, random: bool = False) -> None:
        self.decoder, self.ids, self.run = decoder, list(ids), run
        self._random = random
        self._windowed = any(layer.window for layer in decoder.weights.layers)
        self._held: DecoderSequence | None = None

    def at(self, context: int, advance: Advance = lambda tokens: None) -> None:
        """Hold what a run at `context` needs: once for all where every layer keeps every token, else anew.

        Parameters
        ----------
        context : int
        advance : callable
            Told of tokens that were prefilled.
        """
        if self._held is not None and not self._windowed:
            return
        wanted = context - self.run
        self._held = held = self.decoder.new_sequence()
        if self._random:
            held.reserve(context)
            generator = torch.Generator().manual_seed(0)
            for store in held.stores:
                store.keys.normal_(generator=generator)
                store.values.normal_(generator=generator)
            held.native.length = wanted
            return
        for start in range(0, wanted, PIECE):
            piece = self.ids[start : min(start + PIECE, wanted)]
            self.decoder.prefill(held, piece, reserve=context)
            advance(len(piece))

    def sequence(self, context: int) -> DecoderSequence:
        """A sequence that stands before a run at `context`, in the same memory; its importance keys are its own, not dropped by another's."""
        own = self.decoder.new_sequence()
        for i, (mine, theirs) in enumerate(zip(own.stores, self._held.stores, strict=True)):
            mine.keys, mine.values, mine.capacity, mine.offset = theirs.keys, theirs.values, theirs.capacity, theirs.offset
            own.native.bind(i, mine.keys.view(torch.uint8), mine.values.view(torch.uint8), mine.offset)
        own.native.length = context - self.run
        return own


class NativeSteps:
    """Steps of the native decoder under one plan, each with the token that comes next in the text.

    Runs of several steps are for plans that keep their choices for an interval. Choices are forgotten between runs, whose mean is one sample.

    Parameters
    ----------
    cache : FilledCache
    select : str
        What the method is called.
    plan : Plan or None
        None for dense.
    """

    def __init__(self, cache: FilledCache, select: str, plan: Plan | None) -> None:
        self._cache, self._decoder, self._plan = cache, cache.decoder, plan
        self._sequence: DecoderSequence | None = None
        self._tokens: list[int] = []
        self.identity = {
            "runtime": "native",
            "weights": self._decoder.format,
            "select": select,
            "budget": None if plan is None else str(plan.budget),
        }

    def at(self, context: int) -> None:
        self._sequence, self._tokens = self._cache.sequence(context), self._cache.ids[context - self._cache.run : context]

    def sample(self, steps: int) -> list[float]:
        self._timed(self._tokens[:1])
        run = len(self._tokens)
        return [self._timed(self._tokens) / run for _ in range(-(-steps // run))]

    def bytes_per_token(self, context: int) -> float:
        return self._decoder.bytes_per_token(context, self._plan)

    def _timed(self, tokens: list[int]) -> float:
        """Seconds of steps that append `tokens`, which are forgotten again."""
        seconds = 0.0
        for token in tokens:
            start = time.perf_counter()
            self._decoder.step([self._sequence], [token], self._plan)
            seconds += time.perf_counter() - start
        self._sequence.crop(-len(tokens))
        return seconds


class UnitSteps(NativeSteps):
    """Steps of the native decoder with heads and neurons left out.

    How much is left out depends on the token: each step appends another token of the text, at the same place. Bytes are those of the
    shares that the timed steps computed.

    Parameters
    ----------
    cache : FilledCache
    name : str
        What the method is called.
    units : UnitPlan
        Made of pieces.
    """

    def __init__(self, cache: FilledCache, name: str, units: UnitPlan) -> None:
        super().__init__(cache, name, None)
        self.identity["budget"] = str(units.sparsity)
        choices = Choices(units)
        if choices.needs_prompt:
            choices.see(_prompt(self._decoder, cache.ids, units))
        self._units, self._plan_of_units = NativeUnits(self._decoder, unit_pieces(units, choices)), units
        self._at, self._computed, self._steps = 0, [0, 0], 0

    def at(self, context: int) -> None:
        super().at(context)
        self._computed, self._steps = [0, 0], 0

    def sample(self, steps: int) -> list[float]:
        self._step()
        return [self._step() for _ in range(steps)]

    def bytes_per_token(self, context: int) -> float:
        geometry, plan = self._plan_of_units.units.geometry, self._plan_of_units
        whole = [len(plan.layers) * units for units in (geometry.query_heads, geometry.intermediate_size)]
        asked = (plan.sparsity.heads, plan.sparsity.neurons)
        skipped = [
            1 - computed / (self._steps * units) if share and self._steps else 0.0
            for computed, units, share in zip(self._computed, whole, asked, strict=True)
        ]
        return self._decoder.bytes_per_token(context, None, self._units, tuple(skipped))

    def _step(self) -> float:
        token = self._cache.ids[self._at % len(self._cache.ids)]
        self._at += 1
        start = time.perf_counter()
        step = self._decoder.step([self._sequence], [token], units=[self._units])
        seconds = time.perf_counter() - start
        self._sequence.crop(-1)
        heads, neurons, *_ = step.units[0]
        self._computed, self._steps = [self._computed[0] + heads, self._computed[1] + neurons], self._steps + 1
        return seconds


class ActivationSteps(NativeSteps):
    """Steps of the native decoder with matrices cut by their inputs, each with another token of the text at the same place.

    Parameters
    ----------
    cache : FilledCache
    name : str
        What the method is called.
    method : ActivationMethod
    """

    def __init__(self, cache: FilledCache, name: str, method: ActivationMethod) -> None:
        super().__init__(cache, name, None)
        self._cuts = native_activations(self._decoder, method)
        self.identity["budget"] = None if method.target is None else f"target {method.target:g}"
        self._at, self._counts = 0, ActivationCounts(self._cuts)

    def at(self, context: int) -> None:
        super().at(context)
        self._counts = ActivationCounts(self._cuts)

    def sample(self, steps: int) -> list[float]:
        self._step()
        return [self._step() for _ in range(steps)]

    def bytes_per_token(self, context: int) -> float:
        return self._decoder.bytes_per_token(context, activations=self._cuts, shares=self._counts.shares)

    @property
    def sparsity(self) -> float:
        """Share of the elements of all layers' matrices that the steps at this context did not read."""
        return self._cuts.sparsity(self._counts.shares)

    def _step(self) -> float:
        token = self._cache.ids[self._at % len(self._cache.ids)]
        self._at += 1
        start = time.perf_counter()
        step = self._decoder.step([self._sequence], [token], activations=self._cuts)
        seconds = time.perf_counter() - start
        self._sequence.crop(-1)
        self._counts.add(step)
        return seconds


def _prompt(decoder: Decoder, ids: Sequence[int], units: UnitPlan) -> Prompt:
    """What is known of the beginning of a text as a prompt."""
    loaded = decoder.loaded
    record = PromptRecord(loaded.anatomy, {p for method in units.methods for p in method.producers})
    with recorded(loaded.model, loaded.anatomy, record):
        loaded.model(torch.tensor([list(ids[:PIECE])]), use_cache=False)
    return record.prompt()


class RivalSteps:
    """Steps of a rival that was prepared with the longest context."""

    def __init__(self, rival: Rival, **variant: Any) -> None:
        self._rival = rival
        self.identity = {"runtime": rival.runtime, "weights": rival.weights, "select": "dense", "budget": None, **variant}

    def at(self, context: int) -> None:
        self._rival.at(context)

    def sample(self, steps: int) -> list[float]:
        self._rival.step()
        return [self._rival.timed_step() for _ in range(steps)]

    def bytes_per_token(self, context: int) -> float:
        return self._rival.bytes_per_token(context)


def interleave(candidates: Sequence[Candidate], rounds: int, steps: int, done: Callable[[], None] = lambda: None) -> list[list[float]]:
    """Samples of each candidate, who take turns of a few steps: a slow spell of the machine meets all of them.

    Parameters
    ----------
    candidates : sequence of Candidate
        Each at its context.
    rounds : int
        How often each has its turn.
    steps : int
        Counted in a turn.
    done : callable
        Called after each turn.
    """
    samples: list[list[float]] = [[] for _ in candidates]
    for _ in range(rounds):
        for candidate, mine in zip(candidates, samples, strict=True):
            mine += candidate.sample(steps)
            done()
    return samples
