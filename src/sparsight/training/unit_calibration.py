"""What `gated` and thresholds need of calibration text: second moments of inputs, magnitudes of factors, distributions of scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models import LoadedModel
from ..runtime.units import masked
from ..units import UnitMethod, UnitRows
from ..units.cuts import STEPS

Progress = Callable[[int, int, str], None]
_KEPT = 400_000
# Scores of a layer that quantiles are taken from.


class FactorMoments:
    """Sums over rows, a layer each, in float64 on the CPU.

    Attributes
    ----------
    inputs : (layers, hidden, hidden)
        Second moments of the feed-forward input.
    magnitude, square : dict of str to (layers, neurons)
        Mean magnitude and mean square of the activated gate and of up.
    heads : (layers, query_heads)
        Mean square of the heads' outputs.
    """

    def __init__(self, loaded: LoadedModel, windows: Sequence[Tensor], progress: Progress | None = None) -> None:
        a = loaded.anatomy
        self.inputs = torch.zeros(a.layers, a.hidden_size, a.hidden_size)
        self.magnitude = {name: torch.zeros(a.layers, a.intermediate_size) for name in ("gate", "up")}
        self.square = {name: torch.zeros(a.layers, a.intermediate_size) for name in ("gate", "up")}
        self.heads = torch.zeros(a.layers, a.query_heads)
        self.rows = 0

        def see(kind: str, rows: UnitRows, truth: Tensor, mask: Tensor | None) -> None:
            if kind == "heads":
                self.heads[rows.layer] += truth.float().square().sum(dim=(0, 2)).cpu()
                return
            x = rows.ffn_input()
            self.inputs[rows.layer] += (x.T @ x).cpu()
            for name in ("gate", "up"):
                factor = rows.factor(name)
                self.magnitude[name][rows.layer] += factor.abs().sum(dim=0).cpu()
                self.square[name][rows.layer] += factor.square().sum(dim=0).cpu()

        with masked(loaded.model, a, None, see):
            for i, ids in enumerate(windows):
                if progress is not None:
                    progress(i, len(windows), "moments")
                loaded.anatomy.base()(ids[None].to(loaded.model.device), use_cache=False)
                self.rows += len(ids)
        for total in (self.inputs, self.heads, *self.magnitude.values(), *self.square.values()):
            total /= self.rows


def calibrate_gated(units: UnitMethod, loaded: LoadedModel, windows: Sequence[Tensor], progress: Progress | None = None) -> None:
    """Fill the weights of an untrained `gated` from text; see its module for the formulas.

    Parameters
    ----------
    units : Gated
    loaded : LoadedModel
    windows : sequence of (tokens,) int64
    """
    moments, config = FactorMoments(loaded, windows, progress), units.config
    other = "gate" if config.first == "up" else "up"
    with torch.no_grad():
        units.heads.copy_(moments.heads.sqrt())
        for i in range(1, loaded.anatomy.layers):
            found = loaded.anatomy.projections(i)
            column = found["down"][0].weight.float().norm(dim=0).cpu()
            if not config.rank:
                units.scale[i - 1] = column * moments.magnitude[other][i]
                continue
            module, rows = found[other]
            left, right, spread = low_rank_look(
                module.weight[rows].float().cpu(), moments.inputs[i], column * moments.square[config.first][i].sqrt(), config.rank
            )
            units.scale[i - 1], units.left[i - 1], units.right[i - 1], units.spread[i - 1] = column, left, right, spread


def low_rank_look(weight: Tensor, moments: Tensor, importance: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The low-rank matrix closest to a projection on real inputs.

    Minimises `sum_j importance_j**2 E (w_j . x - (left right x)_j)**2`: with C the second moments of x and D the importances it is the
    truncated SVD of `D W C^(1/2)`, taken back by `D^-1` and `C^(-1/2)`.

    Parameters
    ----------
    weight : (rows, cols)
    moments : (cols, cols)
    importance : (rows,)
    rank : int

    Returns
    -------
    left : (rows, rank)
    right : (rank, cols)
    spread : (rows,)
        Root mean square of what is not seen.
    """
    values, vectors = torch.linalg.eigh(moments.double())
    values = values.clamp_min(float(values[-1]) * 1e-7)
    weight, importance = weight.double(), importance.double().clamp_min(1e-12)
    u, s, vh = torch.linalg.svd(importance[:, None] * (weight @ (vectors * values.sqrt())), full_matrices=False)
    left, right = u[:, :rank] * s[:rank] / importance[:, None], vh[:rank] @ (vectors / values.sqrt()).T
    # Balanced, so that neither factor loses digits in bfloat16.
    balance = (right.norm(dim=1) / left.norm(dim=0).clamp_min(1e-30)).sqrt()
    left, right = left * balance, right / balance[:, None]
    rest = weight - left @ right
    return left.float(), right.float(), ((rest @ moments.double()) * rest).sum(dim=1).clamp_min(0).sqrt().float()


def calibrate_cuts(units: UnitMethod, loaded: LoadedModel, windows: Sequence[Tensor], progress: Progress | None = None) -> None:
    """Take the quantiles of a method's neuron scores on text.

    Parameters
    ----------
    units : UnitMethod
        With `cuts`, on the model's device.
    """
    layers = loaded.anatomy.layers
    collected: dict[int, list[Tensor]] = {i: [] for i in range(1, layers)}
    each = max(_KEPT // max(sum(len(w) for w in windows), 1), 1)

    def see(kind: str, rows: UnitRows, truth: Tensor, mask: Tensor | None) -> None:
        if kind == "neurons" and rows.layer > 0:
            scores = units.neuron_scores(rows)
            # Every so many neurons, another start a row, so that all are seen.
            step = max(scores.shape[1] // each, 1)
            offset = rows.positions[:, None] % step
            index = (torch.arange(0, scores.shape[1] - step + 1, step, device=scores.device)[None] + offset).clamp_max(scores.shape[1] - 1)
            collected[rows.layer].append(scores.gather(1, index).flatten().float().cpu())

    with masked(loaded.model, loaded.anatomy, None, see):
        for i, ids in enumerate(windows):
            if progress is not None:
                progress(i, len(windows), "thresholds")
            loaded.anatomy.base()(ids[None].to(loaded.model.device), use_cache=False)
    for layer, parts in collected.items():
        ordered = torch.cat(parts).sort().values
        places = torch.linspace(0, len(ordered) - 1, STEPS + 1).long()
        units.cuts.quantiles[layer] = ordered[places].to(units.cuts.quantiles.device)


