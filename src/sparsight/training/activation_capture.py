"""Seeing, and changing, what enters the matrices of a model while it reads calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..activations import ActivationMethod, Cut
from ..activations.base import as_kept
from ..errors import ModelError
from ..models import Anatomy, LoadedModel

See = Callable[[int, str, Tensor, Tensor], Tensor | None]
"""Called as see(layer, part, inputs (rows, inputs), weight (outputs, inputs)); inputs that are returned take their place."""


@contextmanager
def watched_inputs(anatomy: Anatomy, see: See, layers: range | None = None) -> Iterator[None]:
    """Call `see` for every matrix in the order of a forward, also where several are one module: then each gets the inputs it gives back."""
    with ExitStack() as stack:
        for i in range(anatomy.layers) if layers is None else layers:
            for module, parts in anatomy.by_module(i).items():
                stack.callback(module.register_forward_pre_hook(_before(i, parts, see)).remove)
                if len(parts) > 1:
                    stack.callback(module.register_forward_hook(_behind(i, parts, see)).remove)
        yield


def _before(layer: int, parts: list[tuple[str, slice]], see: See) -> Callable:
    def hook(module, args):
        if len(parts) > 1:
            return None
        (part, rows) = parts[0]
        changed = see(layer, part, args[0].detach().flatten(0, -2), module.weight[rows])
        return None if changed is None else (changed.view(args[0].shape), *args[1:])

    return hook


def _behind(layer: int, parts: list[tuple[str, slice]], see: See) -> Callable:
    def hook(module, args, output):
        x, made, any_changed = args[0].detach(), [], False
        for part, rows in parts:
            changed = see(layer, part, x.flatten(0, -2), module.weight[rows])
            any_changed = any_changed or changed is not None
            bias = None if module.bias is None else module.bias[rows]
            given = x if changed is None else changed.view(x.shape)
            made.append(nn.functional.linear(given, module.weight[rows], bias) if changed is not None else output[..., rows])
        return torch.cat(made, dim=-1) if any_changed else None

    return hook


def run_base(loaded: LoadedModel, windows: Tensor) -> None:
    """One forward of everything below the head, without a cache."""
    with torch.no_grad():
        loaded.anatomy.base()(windows.to(loaded.model.device), use_cache=False)


def check_inputs(layer: int, part: str, x: Tensor) -> Tensor:
    """Inputs of a matrix in float32; `ModelError` if they are not finite, or all the same."""
    x = x.float()
    if not torch.isfinite(x).all():
        raise ModelError(
            f"layer {layer}: inputs of {part!r} are NaN or infinite on the calibration text; the model is damaged or its dtype overflows"
        )
    if bool((x == x[0]).all()):
        raise ModelError(f"layer {layer}: inputs of {part!r} are the same for every token of the calibration text; give other text")
    return x


def find_cut(
    method: ActivationMethod, part: str, x: Tensor, weight: Tensor, share: float, importance: Tensor | None = None, centre: Tensor | None = None
) -> Cut:
    """Centre and threshold of a matrix such that a share of the inputs is cut.

    Parameters
    ----------
    method : ActivationMethod
    part : str
    x : (rows, inputs)
        Finite, and not all the same.
    weight : (outputs, inputs)
    share : float
        In [0, 1); 0 keeps everything.
    importance : (outputs,), optional
    centre : (inputs,) or (1,), optional
        By default the method's.
    """
    x = x.float()
    centre = as_kept(method.centre(part, x, weight).float() if centre is None else centre)
    if share <= 0:
        return Cut(centre, torch.full_like(centre, -1.0))
    distance = (x - centre).abs_()
    scale = method.scale(part, weight.float(), importance)
    if scale is None:
        threshold = quantile(distance, share).expand_as(centre)
    else:
        # Of an input that is worth nothing everything is cut.
        floor = scale.max().clamp_min(1e-30) * 1e-6
        scale = scale.clamp_min(floor)
        threshold = quantile(distance * scale, share) / scale
    return Cut(centre, threshold).kept()


def quantile(values: Tensor, share: float) -> Tensor:
    """The least value that a share of the values does not exceed."""
    flat = values.flatten()
    rank = min(max(round(share * flat.numel()), 1), flat.numel())
    if flat.device.type == "cpu":
        import numpy as np

        # introselect: several times as fast as torch's kthvalue on one core
        return torch.from_numpy(np.partition(flat.numpy(), rank - 1)[rank - 1 : rank])[0]
    return flat.kthvalue(rank).values
