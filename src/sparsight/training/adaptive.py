"""Budgets that adapt, calibrated so that a method reads its budget on average over text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from ..models import LoadedModel
from ..runtime import KINDS, Adaptive, Budget, HeadShares, Rule, Thresholds, TopP, excess, score
from ..runtime.adaptive import check_scores, sorted_attention
from ..tokens import Selector
from .schedule import calibration_steps
from .shipped_text import shipped_documents
from .teacher import sample_positions, teach
from .text import Document, token_stream
from .windows import window

LEAST_SHARE = 0.2
"""Of an even share, what every head gets at least where heads get different ones."""


def calibrate_adaptive(
    loaded: LoadedModel,
    selector: Selector,
    length: int,
    budget: Budget,
    rule: Rule | None = None,
    documents: Sequence[Document] | None = None,
    kind: str = "thresholds",
    every_row: bool = False,
    chunks: int = 8,
    rows: int = 32,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Adaptive:
    """Find how a budget is spread so that as many tokens are read as it allows, averaged over rows, and for top-p and heads over heads.

    - `thresholds`: a cut-off a layer and chooser (arXiv:2503.07518v1). A head reads more where many tokens matter and less where few do.
    - `top-p`: one share of the estimated attention for all; heads that look at many tokens read more, those that look at few less.
    - `heads`: shares of the budget for each layer and chooser, by how many tokens of each are above one level of estimated attention.

    Parameters
    ----------
    loaded : LoadedModel
    selector : Selector
        One whose importance is in the scale of attention logits.
    length : int
        Tokens a chunk. A cut-off lets through about the same share of any length, which is not the same number of tokens: calibrate at
        the length that is read.
    budget : Budget
    rule : Rule, optional
        Sinks, window, neighbours and who chooses.
    documents : sequence of Document, optional
        The text that comes with the package without any.
    kind : {"thresholds", "top-p", "heads"}
    every_row : bool
        Sample rows from all of a chunk, each with the budget of what it sees, instead of from its last quarter with the budget of its
        length: how `evaluate` scores with a simulated prefill, and without.
    chunks, rows : int
        Chunks of text, and rows sampled from each.
    seed : int
    progress : callable, optional
        progress(chunks done, chunks, note)

    Returns
    -------
    Thresholds, TopP or HeadShares

    Raises
    ------
    BudgetError
        If the budget does not hold sinks, window and one chosen token.
    ConfigError
        If the method gives ranks, not scores.
    """
    rule = rule or Rule()
    if kind not in KINDS:
        raise ConfigError(f"adaptive budgets are one of {', '.join(KINDS)}, got {kind!r}")
    check_scores(selector)
    rule.check_room(budget.at(length))
    stream = torch.from_numpy(token_stream(documents or shipped_documents(), loaded.tokenizer)[0])
    steps = calibration_steps(len(stream), (length,), chunks * length, seed)[:chunks]
    generator = torch.Generator().manual_seed(seed)
    seen: dict[int, list[Tensor]] = {layer: [] for layer in selector.layers}
    wanted = 0
    for number, step in enumerate(steps):
        if progress is not None:
            progress(number, len(steps), f"{kind} of {selector.name} at {budget}")
        ids = window(stream, step.start, length, loaded.start_tokens)
        positions = sample_positions(length, rows, 0 if every_row else length * 3 // 4, generator)
        budgets = [min(max(budget.at(p + 1), rule.least), p + 1) if every_row else budget.at(length) for p in positions.tolist()]
        lesson = teach(loaded, ids, positions, selector.layers, selector.producers, rule.per_query_head)
        index = selector.new_index()
        for layer in selector.layers:
            view = lesson.rows(layer)
            view.index = index
            if index is not None:
                index.extend(lesson.every_row(layer))
            selectable = rule.selectable(view)
            importance = score(selector, view, rule)
            if kind == "thresholds":
                seen[layer].append(excess(importance, selectable)[0].flatten(1).cpu())
            else:
                always, held = sorted_attention(importance, view.visible, selectable)
                seen[layer].append(torch.cat([always, held], dim=-1)[0].cpu())
            if layer == selector.layers[0]:
                always = (view.visible & ~selectable).sum(dim=-1).flatten()
                wanted += int((torch.tensor(budgets, device=always.device) - always).clamp_min(0).sum())
    if kind == "thresholds":
        return Thresholds({layer: _cut(torch.cat(values, dim=1), wanted) for layer, values in seen.items()}, str(budget))
    attention = torch.stack([torch.cat(values, dim=1) for values in seen.values()])
    mean = wanted / attention.shape[2]
    if kind == "top-p":
        return TopP(_share(attention, mean), str(budget))
    return HeadShares(dict(zip(seen, _head_shares(attention[..., 1:], mean), strict=True)), str(budget))


def _cut(values: Tensor, wanted: int) -> Tensor:
    """What `wanted` of the values of each chooser, `(choosers, values)`, are above."""
    return values.topk(min(wanted + 1, values.shape[1]), dim=1).values[:, -1]


def _share(attention: Tensor, wanted: float) -> float:
    """The share of attention that `wanted` tokens beyond those always read hold on average; `attention` `(..., 1 + tokens)`, always first."""
    held = attention.cumsum(dim=-1)
    low, high = 0.0, 1.0
    for _ in range(40):
        p = (low + high) / 2
        read = float((held < p).sum(dim=-1).double().mean())
        low, high = (p, high) if read < wanted else (low, p)
    return (low + high) / 2


def _head_shares(attention: Tensor, wanted: float) -> Tensor:
    """`(layers, choosers)` float32 of mean 1, from estimated attention `(layers, choosers, rows, tokens)`."""
    low, high = -60.0, 0.0
    for _ in range(50):
        level = (low + high) / 2
        read = (attention > math.exp(level)).sum(dim=-1).double().mean(dim=-1)
        low, high = (level, high) if float(read.mean()) > wanted else (low, level)
    shares = read / read.mean().clamp_min(1e-12)
    return (LEAST_SHARE + (1 - LEAST_SHARE) * shares).float()
