"""Groups of neurons that are active together, so that few outputs of a predictor speak for many neurons."""

from __future__ import annotations

import torch
from torch import Tensor


def co_active_groups(magnitudes: Tensor, size: int) -> Tensor:
    """Part neurons into groups of equal size whose magnitudes rise and fall together.

    Neurons, as unit vectors over rows less their mean, are halved again and again at the median of their first principal direction; every
    part is a whole number of groups.

    Parameters
    ----------
    magnitudes : (rows, neurons) float32
    size : int
        Neurons a group; the last group is smaller if they do not come out even.

    Returns
    -------
    (neurons,) int64
        Group of each neuron.
    """
    rows, neurons = magnitudes.shape
    if size == 1:
        return torch.arange(neurons)
    vectors = (magnitudes - magnitudes.mean(dim=0)).T.float()
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
    group = torch.empty(neurons, dtype=torch.long)
    parts, found = [torch.arange(neurons)], 0
    while parts:
        part = parts.pop()
        count = -(-len(part) // size)
        if count == 1:
            group[part] = found
            found += 1
            continue
        along = vectors[part] @ _principal(vectors[part])
        ordered = part[along.argsort(stable=True)]
        cut = count // 2 * size
        parts += [ordered[cut:], ordered[:cut]]
    return group


def _principal(vectors: Tensor, rounds: int = 12) -> Tensor:
    """First principal direction of the rows of `vectors`, by power iteration from a fixed start."""
    centred = vectors - vectors.mean(dim=0)
    direction = centred[centred.norm(dim=1).argmax()]
    for _ in range(rounds):
        direction = centred.T @ (centred @ direction)
        direction = direction / direction.norm().clamp_min(1e-30)
    return direction
