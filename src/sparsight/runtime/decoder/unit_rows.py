"""The units that the rows of a native generation leave out: chosen behind each prompt where the plan looks at prompts, else once for all."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..generation import Generation
from .decoder import Decoder, Step
from .units import NativeUnits

if TYPE_CHECKING:
    from ..units import UnitPlan

_MADE: weakref.WeakKeyDictionary[Decoder, weakref.WeakKeyDictionary[UnitPlan, NativeUnits]] = weakref.WeakKeyDictionary()
# Of plans that look at no prompt: their matrices are packed once.


class UnitRows:
    """What each row leaves out, and counts of it.

    Parameters
    ----------
    decoder : Decoder
    plan : UnitPlan or None
        None leaves nothing out.
    """

    def __init__(self, decoder: Decoder, plan: UnitPlan | None) -> None:
        from ..units import Choices

        self._decoder, self._plan = decoder, plan
        self._choices = None if plan is None else Choices(plan)
        self._rows: list[NativeUnits] = []
        self._record = None
        self._seconds = 0.0
        self._computed, self._held = [0, 0], [0, 0]

    @contextmanager
    def watch(self) -> Iterator[bool]:
        """See a prompt as it is processed within the block, which has to be done in the graph if this gives True."""
        from ..units import PromptRecord, recorded

        if self._choices is None or not self._choices.needs_prompt:
            yield False
            return
        loaded = self._decoder.loaded
        self._record = PromptRecord(loaded.anatomy, {p for method in self._plan.methods for p in method.producers})
        with recorded(loaded.model, loaded.anatomy, self._record):
            yield True

    def choose(self) -> None:
        """Choose for the row whose prompt was seen."""
        if self._choices is None:
            return
        from ..units import unit_pieces

        started = time.perf_counter()
        if self._choices.needs_prompt:
            self._choices.see(self._record.prompt())
            self._rows.append(NativeUnits(self._decoder, unit_pieces(self._plan, self._choices)))
        else:
            made = _MADE.setdefault(self._decoder, weakref.WeakKeyDictionary())
            if self._plan not in made:
                made[self._plan] = NativeUnits(self._decoder, unit_pieces(self._plan, self._choices))
            self._rows.append(made[self._plan])
        self._seconds += time.perf_counter() - started

    def of(self, going: Sequence[int]) -> list[NativeUnits]:
        """Those of the rows that go on; an empty list for none at all."""
        return [self._rows[i] for i in going] if self._rows else []

    def count(self, step: Step) -> None:
        """Count what a step computed."""
        if step.units is None:
            return
        geometry, layers = self._plan.units.geometry, len(self._plan.layers)
        for heads, neurons, _, _ in step.units:
            for i, (skips, computed, units) in enumerate(
                (
                    (self._choices.skips_heads, heads, geometry.query_heads),
                    (self._choices.skips_neurons, neurons, geometry.intermediate_size),
                )
            ):
                self._computed[i] += computed if skips else 0
                self._held[i] += units * layers if skips else 0

    def tell(self, generation: Generation) -> None:
        """Say in a result what was left out."""
        shares = [1 - a / b if b else 0.0 for a, b in zip(self._computed, self._held, strict=True)]
        generation.heads_skipped, generation.neurons_skipped = shares
        generation.pack_seconds = self._seconds
