"""How large a share of each matrix's inputs is cut: the same everywhere, or by a search in each block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..activations import ActivationMethod
from ..models import Anatomy, LoadedModel
from .activation_capture import find_cut, run_base, watched_inputs

Progress = Callable[[int, int, str], None]
Shares = dict[tuple[int, str], float]
_BLOCK_TOKENS = 256
_BLOCK_STEP = 0.1
# Of the largest matrix in one step of the search.
_MOST = 0.95


@dataclass(frozen=True)
class State:
    """A point on the way of one layer's search.

    Attributes
    ----------
    reached : float
        Mean share over the elements of the layer's matrices.
    error : float
        Of the layer's output.
    shares : dict of str to float
    """

    reached: float
    error: float
    shares: dict[str, float]


def uniform_shares(method: ActivationMethod, target: float) -> Shares:
    """The method's own shares, the same in every layer."""
    return {(i, part): share for part, share in method.shares(target).items() for i in range(method.geometry.layers)}


def block_paths(
    loaded: LoadedModel,
    method: ActivationMethod,
    windows: Tensor,
    most: float,
    importance: dict[tuple[int, str], Tensor] | None = None,
    progress: Progress | None = None,
) -> list[list[State]]:
    """TEAL's search (arXiv:2408.14690, algorithm 1) in every layer, on dense inputs.

    From nothing cut, each step raises the share of the matrix for which this changes the output of the layer least, in the mean square over the
    last quarter of each window. A step is `_BLOCK_STEP` of the largest matrix and as many elements of the others.

    Parameters
    ----------
    loaded : LoadedModel
    method : ActivationMethod
    windows : (count, tokens) int64
    most : float
        Mean share that is searched for.
    importance : dict, optional
        What outputs are worth, for methods that weigh their inputs by it.

    Returns
    -------
    list of list of State
        By layer, from nothing cut to `most`.
    """
    anatomy, geometry = loaded.anatomy, method.geometry
    length = min(windows.shape[1], _BLOCK_TOKENS // 2)
    windows = windows[: _BLOCK_TOKENS // length, :length]
    calls: dict[int, tuple[Any, Any]] = {}
    with _captured_calls(anatomy, calls):
        run_base(loaded, windows)
    elements = {part: geometry.elements(part) for part in method.parts}
    total, largest = sum(elements.values()), max(elements.values())
    steps = {part: min(_BLOCK_STEP * largest / count, 0.25) for part, count in elements.items()}
    paths = []
    for i in range(geometry.layers):
        block = _Block(anatomy, method, i, *calls[i], importance or {})
        path = [State(0.0, 0.0, dict.fromkeys(method.parts, 0.0))]
        while path[-1].reached < most - 1e-9:
            now, tried = path[-1].shares, []
            for part in now:
                if (step := min(steps[part], _MOST - now[part])) > 1e-6:
                    shares = {**now, part: now[part] + step}
                    tried.append(State(sum(shares[p] * elements[p] for p in shares) / total, block.error(shares), shares))
            if not tried:
                break
            path.append(min(tried, key=lambda state: state.error))
        paths.append(path)
        if progress is not None:
            progress(i + 1, geometry.layers, "shares")
    return paths


def block_shares(paths: list[list[State]], target: float) -> Shares:
    """The same mean share in every layer."""
    return {(i, part): share for i, path in enumerate(paths) for part, share in _at(path, target).items()}


def _at(path: list[State], reached: float) -> dict[str, float]:
    """Shares between two states of a path."""
    for low, high in zip(path, path[1:], strict=False):
        if high.reached >= reached:
            part = (reached - low.reached) / max(high.reached - low.reached, 1e-12)
            return {name: low.shares[name] + part * (high.shares[name] - low.shares[name]) for name in low.shares}
    return path[-1].shares


class _Block:
    """One layer on the inputs it was seen with."""

    def __init__(
        self, anatomy: Anatomy, method: ActivationMethod, layer: int, args: Any, kwargs: Any, importance: dict[tuple[int, str], Tensor]
    ) -> None:
        self.anatomy, self.method, self.layer, self.args, self.kwargs, self.importance = anatomy, method, layer, args, kwargs, importance
        self.shares: dict[str, float] = {}
        self.cuts: dict[tuple[str, float], Any] = {}
        self.inputs: dict[str, tuple[Tensor, Tensor]] = {}
        with watched_inputs(anatomy, self._keep, range(layer, layer + 1)):
            self.dense = self._output()

    def _keep(self, layer: int, part: str, x: Tensor, weight: Tensor) -> None:
        self.inputs[part] = (x, weight)

    def _cut(self, layer: int, part: str, x: Tensor, weight: Tensor) -> Tensor | None:
        share = self.shares.get(part, 0.0)
        if share <= 0:
            return None
        if (part, share) not in self.cuts:
            self.cuts[part, share] = find_cut(self.method, part, *self.inputs[part], share, self.importance.get((layer, part)))
        return self.cuts[part, share].pruned(x)

    def _output(self) -> Tensor:
        with torch.no_grad():
            out = self.anatomy.layer(self.layer)(*self.args, **self.kwargs)
        out = out if isinstance(out, Tensor) else out[0]
        return out[:, out.shape[1] * 3 // 4 :].float()

    def error(self, shares: dict[str, float]) -> float:
        """Mean square of the change of the layer's output."""
        self.shares = shares
        with watched_inputs(self.anatomy, self._cut, range(self.layer, self.layer + 1)):
            return float((self._output() - self.dense).square().mean())


class _captured_calls:
    """Keeps the arguments that each layer is called with."""

    def __init__(self, anatomy: Anatomy, calls: dict[int, tuple[Any, Any]]) -> None:
        self.anatomy, self.calls = anatomy, calls

    def __enter__(self) -> None:
        def keep(i: int) -> Callable:
            def hook(module, args, kwargs):
                self.calls[i] = (args, {**kwargs, "use_cache": False} if "use_cache" in kwargs else kwargs)

            return hook

        self._handles = [
            self.anatomy.layer(i).register_forward_pre_hook(keep(i), with_kwargs=True) for i in range(self.anatomy.layers)
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
