"""How large a share of each matrix's inputs is cut: the same everywhere, by a search in each block, or where the loss says it costs least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import ActivationMethod
from ..models import Anatomy, LoadedModel
from .activation_capture import find_cut, run_base, watched_inputs

Progress = Callable[[int, int, str], None]
Shares = dict[tuple[int, str], float]

_BLOCK_TOKENS = 256
_BLOCK_STEP = 0.1
# Of the largest matrix in one step of the search.
_MOST = 0.95
_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_CURVE_ROWS = 1024


def uniform_shares(method: ActivationMethod, target: float) -> Shares:
    """The method's own shares, the same in every layer."""
    return {(i, part): share for part, share in method.shares(target).items() for i in range(method.geometry.layers)}


def block_shares(loaded: LoadedModel, method: ActivationMethod, windows: Tensor, target: float, progress: Progress | None = None) -> Shares:
    """TEAL's search (arXiv:2408.14690, algorithm 1), layer by layer on dense inputs.

    From nothing cut, each step raises the share of the matrix for which this changes the output of the layer least (in the mean square over
    the last quarter of each window), until the mean over the layer's elements is the target. A step is `_BLOCK_STEP` of the largest matrix
    and as many elements of the others.
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
    found: Shares = {}
    for i in range(geometry.layers):
        block = _Block(anatomy, method, i, *calls[i])
        shares = dict.fromkeys(method.parts, 0.0)
        while (reached := sum(shares[part] * elements[part] for part in shares) / total) < target - 1e-9:
            tried = {}
            for part in shares:
                room = (target - reached) * total / elements[part]
                if (step := min(steps[part], _MOST - shares[part], room)) > 1e-6:
                    tried[part] = (block.error({**shares, part: shares[part] + step}), shares[part] + step)
            if not tried:
                break
            best = min(tried, key=lambda part: tried[part][0])
            shares[best] = tried[best][1]
        found |= {(i, part): share for part, share in shares.items()}
        if progress is not None:
            progress(i + 1, geometry.layers, "shares")
    return found


class _Block:
    """One layer on the inputs it was seen with."""

    def __init__(self, anatomy: Anatomy, method: ActivationMethod, layer: int, args: Any, kwargs: Any) -> None:
        self.anatomy, self.method, self.layer, self.args, self.kwargs = anatomy, method, layer, args, kwargs
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
            self.cuts[part, share] = find_cut(self.method, part, *self.inputs[part], share)
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


def output_importance(loaded: LoadedModel, windows: Tensor, progress: Progress | None = None) -> dict[tuple[int, str], Tensor]:
    """Mean square of the gradient of the text's loss by each output of each matrix (the diagonal of the empirical Fisher information).

    Parameters
    ----------
    windows : (count, tokens) int64

    Returns
    -------
    dict of (layer, part) to (outputs,) float32
    """
    anatomy, model = loaded.anatomy, loaded.model
    sums: dict[tuple[int, str], Tensor] = {}

    def catch(layer: int, parts: list[tuple[str, slice]]) -> Callable:
        def hook(module, args, output):
            def gradient(grad: Tensor) -> None:
                squares = grad.detach().float().flatten(0, -2).square().sum(dim=0)
                for part, rows in parts:
                    sums[layer, part] = sums.get((layer, part), 0) + squares[rows]

            output.register_hook(gradient)

        return hook

    handles = []
    for i in range(anatomy.layers):
        modules: dict[nn.Module, list[tuple[str, slice]]] = {}
        for part, (module, rows) in anatomy.projections(i).items():
            modules.setdefault(module, []).append((part, rows))
        handles += [module.register_forward_hook(catch(i, parts)) for module, parts in modules.items()]
    try:
        for i, ids in enumerate(windows):
            ids = ids[None].to(model.device)
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(inputs_embeds=embedded, use_cache=False).logits
                nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum").backward()
            if progress is not None:
                progress(i + 1, len(windows), "gradients")
    finally:
        for handle in handles:
            handle.remove()
    return {key: total / windows.numel() for key, total in sums.items()}


def loss_shares(
    loaded: LoadedModel, method: ActivationMethod, windows: Tensor, target: float, importance: dict[tuple[int, str], Tensor],
    progress: Progress | None = None,
) -> Shares:
    """The shares at which the loss is expected to rise least, whose mean over all elements is the target.

    The error of a matrix at a share s is measured: `E(s) = mean over rows of sum over o of F_o (change of y_o)^2` with the importance F. Of all
    shares with the same elements left out those are best at which every matrix gains as much by another element (Everett 1963).
    """
    geometry, curves = method.geometry, {}
    rows_used = max(-(-_CURVE_ROWS // windows.shape[1]), 1)

    def measure(layer: int, part: str, x: Tensor, weight: Tensor) -> None:
        if part not in method.parts:
            return
        wanted, errors = importance[layer, part], []
        for share in _LEVELS:
            cut = find_cut(method, part, x, weight, share, wanted)
            change = (x - cut.pruned(x)) @ weight.T
            errors.append(float((change.float().square() @ wanted).mean()))
        curves[layer, part] = errors
        if progress is not None:
            progress(len(curves), geometry.layers * len(method.parts), "errors")

    with watched_inputs(loaded.anatomy, measure):
        run_base(loaded, windows[:rows_used])
    return spread(curves, {key: geometry.elements(key[1]) for key in curves}, target)


def spread(curves: dict[Any, list[float]], elements: dict[Any, int], target: float) -> dict[Any, float]:
    """Shares with the least sum of errors, whose mean over the elements is the target.

    Parameters
    ----------
    curves : dict to list of float
        Error at each of `_LEVELS`; made convex, which is what a mixture of two levels would give.
    elements : dict to int
    target : float
    """
    hulls = {key: _hull([(0.0, 0.0), *zip(_LEVELS, errors, strict=True)]) for key, errors in curves.items()}
    pieces = []
    for key, hull in hulls.items():
        for (a, low), (b, high) in zip(hull, hull[1:], strict=False):
            pieces.append(((high - low) / ((b - a) * elements[key]), key, b - a))
    shares = dict.fromkeys(curves, 0.0)
    left = target * sum(elements.values())
    for _, key, width in sorted(pieces, key=lambda piece: piece[0]):
        taken = min(width, left / elements[key])
        shares[key] += taken
        left -= taken * elements[key]
        if left <= 0:
            break
    return shares


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of points in rising order."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        hull.append((x, y))
    return hull
