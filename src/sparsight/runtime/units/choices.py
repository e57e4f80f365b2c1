"""From a plan to what is computed: masks for a whole generation, and for each row of a step."""

from __future__ import annotations

from torch import Tensor

from ...units import Prompt, Scores, UnitRows, best_heads, best_neurons
from .plan import UnitPlan


class Choices:
    """The choices of one run under a plan.

    Parameters
    ----------
    plan : UnitPlan

    Attributes
    ----------
    heads, neurons : dict of int to (batch or 1, units) bool
        What is computed for the whole generation, a layer; empty in token mode, and before the prompt is known.
    prompt : Prompt or None
        What was seen.
    """

    def __init__(self, plan: UnitPlan) -> None:
        self.plan = plan
        self.prompt: Prompt | None = None
        self.heads: dict[int, Tensor] = {}
        self.neurons: dict[int, Tensor] = {}
        self.skips_heads, self.skips_neurons = plan.sparsity.heads > 0, plan.sparsity.neurons > 0
        if self.skips_heads and plan.head_mode == "static":
            self._give_heads(_batched(plan.head_method.given(None)))
        if self.skips_neurons and plan.neuron_mode == "static":
            self._give_neurons(_batched(plan.units.given(None)))

    @property
    def needs_prompt(self) -> bool:
        """Whether a prompt has to be looked at."""
        return "prompt" in self.plan.modes

    def see(self, prompt: Prompt) -> None:
        """Choose for the generation that follows these prompts."""
        plan, self.prompt = self.plan, prompt
        if self.skips_heads and plan.head_mode == "prompt":
            self._give_heads(plan.head_method.given(prompt))
        if self.skips_neurons and plan.neuron_mode == "prompt":
            self._give_neurons(plan.units.given(prompt))

    def _give_heads(self, scores: Scores) -> None:
        counts = self.plan.counts
        self.heads = {i: best_heads(scores.heads[:, i], counts.heads[i], counts.pool) for i in self.plan.layers}

    def _give_neurons(self, scores: Scores) -> None:
        kept = self.plan.counts.neurons
        self.neurons = {i: best_neurons(scores.neurons[:, i], kept[i]) for i in self.plan.layers}

    def heads_of(self, rows: UnitRows, batch: int) -> Tensor | None:
        """Query heads that rows compute, `(rows, query_heads)` bool; None for all."""
        if not self.skips_heads or rows.layer not in self.plan.layers:
            return None
        if self.plan.head_mode != "token":
            return _each_row(self.heads[rows.layer], len(rows.positions), batch)
        scores = self.plan.head_method.head_scores(rows)
        return best_heads(scores, self.plan.counts.heads[rows.layer], self.plan.counts.pool)

    def neurons_of(self, rows: UnitRows, batch: int) -> Tensor | None:
        """Neurons that rows compute, `(rows, neurons)` bool; None for all."""
        if not self.skips_neurons or rows.layer not in self.plan.layers:
            return None
        if self.plan.neuron_mode != "token":
            return _each_row(self.neurons[rows.layer], len(rows.positions), batch)
        scores = self.plan.units.neuron_scores(rows)
        cut = self.plan.cut(rows.layer)
        return best_neurons(scores, self.plan.counts.neurons[rows.layer]) if cut is None else scores >= cut


def _each_row(mask: Tensor, rows: int, batch: int) -> Tensor:
    """`(batch or 1, units)` for each of `rows` rows, which are those of the batch's sequences one after another."""
    return mask.expand(batch, -1).repeat_interleave(rows // batch, dim=0)


def _batched(scores: Scores) -> Scores:
    return Scores(scores.heads[None], scores.neurons[None])

