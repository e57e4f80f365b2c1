"""Units left out by a mask: what skipping gives, for many rows at once.

It saves nothing; it is how text is scored, and what skipping is held to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models import Anatomy
from ...units import UnitRows
from .choices import Choices
from .watch import PromptRecord, Watch, watching

UnitObserver = Callable[[str, UnitRows, Tensor, Tensor | None], None]
"""Called as observer("heads" or "neurons", rows, truth, mask) at each layer; truth `(rows, query_heads, head_dim)` or `(rows, neurons)`."""


@dataclass
class Tally:
    """Units computed and units there, summed over layers that skip and rows.

    Attributes
    ----------
    computed, held : dict of str to int
        By "heads" and "neurons".
    """

    computed: dict[str, int]
    held: dict[str, int]

    @classmethod
    def empty(cls) -> Tally:
        return cls({"heads": 0, "neurons": 0}, {"heads": 0, "neurons": 0})

    def add(self, kind: str, computed: int, held: int) -> None:
        """Count a layer's units."""
        self.computed[kind] += computed
        self.held[kind] += held

    def dropped(self, kind: str) -> float:
        """Share of the units that was not computed; 0 where nothing was left out."""
        return 1 - self.computed[kind] / self.held[kind] if self.held[kind] else 0.0


@contextmanager
def masked(network: Any, anatomy: Anatomy, choices: Choices | None, observer: UnitObserver | None = None) -> Iterator[Tally]:
    """Leave units out in every row of every forward within the block.

    Parameters
    ----------
    network : transformers causal language model
    anatomy : Anatomy
    choices : Choices or None
        None leaves nothing out: for an observer.
    observer : callable, optional
    """
    watch, tally = Watch(anatomy), Tally.empty()

    def heads(layer: int) -> Callable:
        def hook(module, args):
            flat = args[0].flatten(0, -2)
            watch.truth = flat.unflatten(-1, (anatomy.query_heads, anatomy.head_dim))
            mask = keep("heads", watch.rows(layer))
            if mask is None:
                return None
            return ((watch.truth * mask[..., None]).reshape(args[0].shape), *args[1:])

        return hook

    def neurons(layer: int) -> Callable:
        def hook(module, args):
            watch.truth = args[0].flatten(0, -2)
            mask = keep("neurons", watch.rows(layer))
            return None if mask is None else ((watch.truth * mask).reshape(args[0].shape), *args[1:])

        return hook

    def keep(kind: str, rows: UnitRows) -> Tensor | None:
        choose = None if choices is None else choices.heads_of if kind == "heads" else choices.neurons_of
        mask = None if choose is None else choose(rows, watch.shape[0])
        if mask is not None:
            mask = mask.to(watch.truth.device)
            tally.add(kind, int(mask.sum()), mask.numel())
        if observer is not None:
            observer(kind, rows, watch.truth, mask)
        return mask

    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(watching(network, watch, range(anatomy.layers), factors=True))
        for i in range(anatomy.layers):
            stack.callback(anatomy.head_output(i).register_forward_pre_hook(heads(i)).remove)
            stack.callback(anatomy.neuron_output(i).register_forward_pre_hook(neurons(i)).remove)
        yield tally


@contextmanager
def recorded(network: Any, anatomy: Anatomy, record: PromptRecord, padding: Tensor | None = None) -> Iterator[None]:
    """Sum up what the forwards within the block compute, but for decode steps.

    Parameters
    ----------
    network, anatomy
    record : PromptRecord
    padding : (batch, tokens) bool, optional
        True for tokens that are no text; tokens of the block's forwards, from the first on.
    """
    watch, seen = Watch(anatomy), [0]

    def real() -> Tensor:
        batch, rows = watch.shape
        device = watch.residuals[0].device
        if padding is None:
            return torch.ones(batch, rows, dtype=torch.bool, device=device)
        return ~padding[:, seen[0] : seen[0] + rows].to(device)

    def decoding() -> bool:
        return watch.shape[1] == 1 and watch.past > 0

    def heads(layer: int) -> Callable:
        def hook(module, args):
            if decoding():
                return
            states = args[0].unflatten(-1, (anatomy.query_heads, anatomy.head_dim)).float()
            record.add("heads", layer, states.square().sum(dim=-1).view(*watch.shape, -1), real())
            if layer in record.layers:
                record.add_input(layer, watch.attention_input(layer).view(*watch.shape, -1), real())

        return hook

    def neurons(layer: int) -> Callable:
        def hook(module, args):
            if decoding():
                return
            record.add("neurons", layer, args[0].float().square().view(*watch.shape, -1), real())
            if layer == anatomy.layers - 1:
                record.count(real())
                seen[0] += watch.shape[1]

        return hook

    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(watching(network, watch, range(anatomy.layers), factors=False))
        for i in range(anatomy.layers):
            stack.callback(anatomy.head_output(i).register_forward_pre_hook(heads(i)).remove)
            stack.callback(anatomy.neuron_output(i).register_forward_pre_hook(neurons(i)).remove)
        yield
