"""Hooks that see what methods need: normalised inputs, factors of gated neurons, outputs of heads and neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...models import Anatomy
from ...units import Prompt, Scores, UnitRows


class Watch:
    """What the current forward has computed so far; values are `(batch * rows, ...)`.

    Parameters
    ----------
    anatomy : Anatomy
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.residuals: dict[int, Tensor] = {}
        self.shape = (1, 1)
        self.past = 0
        self._normed: dict[int, Tensor] = {}
        self.ffn_input: Tensor | None = None
        self.factors: dict[str, Tensor] = {}
        self.truth: Tensor | None = None

    def begin(self, shape: tuple[int, int], past: int) -> None:
        """A forward of `shape` (batch, rows) begins behind `past` tokens."""
        self.shape, self.past = shape, past
        self.residuals.clear()
        self._normed.clear()

    def enter(self, layer: int, residual: Tensor) -> None:
        """The residual `(batch, rows, hidden)` enters a layer."""
        self.residuals[layer] = residual
        self.ffn_input = self.truth = None
        self.factors = {}

    def attention_input(self, layer: int) -> Tensor:
        """`(batch * rows, hidden)` float32."""
        if layer not in self._normed:
            with torch.no_grad():
                self._normed[layer] = self.anatomy.input_norm(layer, self.residuals[layer]).flatten(0, -2).float()
        return self._normed[layer]

    def rows(self, layer: int) -> UnitRows:
        """What the rows know at a layer."""
        batch, rows = self.shape
        device = self.residuals[layer].device
        return UnitRows(
            layer=layer,
            attention_input=self.attention_input,
            ffn_input=lambda: self.ffn_input,
            factor=lambda name: self.factors[name],
            truth=lambda: self.truth,
            positions=torch.arange(self.past, self.past + rows, device=device).repeat(batch),
        )


@contextmanager
def watching(model: Any, watch: Watch, layers: Iterable[int], factors: bool) -> Iterator[None]:
    """Keep `watch` informed: the residual entering each layer, and with `factors` the input and both factors of the feed-forward part."""
    from ..attention import on_forward

    anatomy = watch.anatomy

    def begin(kwargs: dict[str, Any]) -> dict[str, Any]:
        ids = kwargs.get("input_ids")
        ids = kwargs["inputs_embeds"] if ids is None else ids
        past = kwargs.get("past_key_values")
        watch.begin((ids.shape[0], ids.shape[1]), 0 if past is None else past.get_seq_length())
        return kwargs

    with ExitStack() as stack:
        stack.callback(on_forward(anatomy.base(), begin).remove)
        for i in layers:
            stack.callback(anatomy.layer(i).register_forward_pre_hook(_enters(watch, i), with_kwargs=True).remove)
            if factors and anatomy.gated:
                stack.callback(anatomy.neuron_input(i).register_forward_hook(_projected(watch, i)).remove)
                up, _ = anatomy.projections(i)["up"]
                if up is not anatomy.neuron_input(i):
                    stack.callback(up.register_forward_hook(_up(watch)).remove)
        yield


def _enters(watch: Watch, layer: int) -> Callable:
    def hook(module, args, kwargs):
        watch.enter(layer, (args[0] if args else kwargs["hidden_states"]).detach())

    return hook


def _projected(watch: Watch, layer: int) -> Callable:
    wide = watch.anatomy.intermediate_size

    def hook(module, args, output):
        watch.ffn_input = args[0].detach().flatten(0, -2).float()
        flat = output.detach().flatten(0, -2)
        watch.factors["gate"] = watch.anatomy.gates(flat).float()
        if flat.shape[-1] == 2 * wide:
            watch.factors["up"] = flat[:, wide:].float()

    return hook


def _up(watch: Watch) -> Callable:
    def hook(module, args, output):
        watch.factors["up"] = output.detach().flatten(0, -2).float()

    return hook


class PromptRecord:
    """Sums over the rows of prompts, from which `Prompt` is made. Rows of padding do not count.

    Parameters
    ----------
    anatomy : Anatomy
    layers : iterable of int
        Whose attention inputs are averaged.
    """

    def __init__(self, anatomy: Anatomy, layers: Iterable[int] = ()) -> None:
        self.anatomy, self.layers = anatomy, tuple(layers)
        self.rows: Tensor | None = None
        self._sums: dict[tuple[str, str], list[Tensor | None]] = {}
        self._inputs: dict[int, Tensor] = {}

    def add(self, kind: str, layer: int, squares: Tensor, real: Tensor) -> None:
        """Add `squares` `(batch, rows, units)` of a layer's heads or neurons; `real` `(batch, rows)` says which rows count."""
        count = self.anatomy.layers
        norm = squares.sum(dim=-1, keepdim=True).clamp_min(1e-30)
        for form, values in (("magnitudes", squares), ("shares", squares / norm)):
            total = (values * real[..., None]).sum(dim=1).float().cpu()
            held = self._sums.setdefault((form, kind), [None] * count)
            held[layer] = total if held[layer] is None else held[layer] + total

    def add_input(self, layer: int, states: Tensor, real: Tensor) -> None:
        """Add `states` `(batch, rows, hidden)` of a layer's normalised attention input."""
        total = (states * real[..., None]).sum(dim=1)
        self._inputs[layer] = self._inputs[layer] + total if layer in self._inputs else total

    def count(self, real: Tensor) -> None:
        """Add rows, `(batch, rows)`."""
        rows = real.sum(dim=1).float().cpu()
        self.rows = rows if self.rows is None else self.rows + rows

    def prompt(self) -> Prompt:
        """What is known of the prompts."""

        def root(form: str, kind: str) -> Tensor:
            return (torch.stack(self._sums[form, kind], dim=1) / self.rows[:, None, None]).sqrt()

        inputs = {layer: total / self.rows[:, None].to(total.device) for layer, total in self._inputs.items()}
        return Prompt(
            Scores(root("magnitudes", "heads"), root("magnitudes", "neurons")),
            Scores(root("shares", "heads"), root("shares", "neurons")),
            inputs.__getitem__,
        )
