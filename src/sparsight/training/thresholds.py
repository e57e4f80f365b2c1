"""Thresholds in place of a fixed count: cut-offs that make a method read its budget on average over text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models import LoadedModel
from ..runtime import Budget, Rule, Thresholds, excess, score
from ..runtime.rule import check_scores
from ..tokens import Selector
from .schedule import calibration_steps
from .shipped_text import shipped_documents
from .teacher import sample_positions, teach
from .text import Document, token_stream
from .windows import window


def calibrate_thresholds(
    loaded: LoadedModel,
    selector: Selector,
    length: int,
    budget: Budget,
    rule: Rule | None = None,
    documents: Sequence[Document] | None = None,
    every_row: bool = False,
    chunks: int = 8,
    rows: int = 32,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Thresholds:
    """Find the cut-off of each layer and chooser by which as many tokens are read as a budget allows, averaged over rows.

    A head then reads more where many tokens matter and less where few do. Per-head calibrated thresholds: arXiv:2503.07518v1.

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
    Thresholds

    Raises
    ------
    BudgetError
        If the budget does not hold sinks, window and one chosen token.
    ConfigError
        If the method gives ranks, not scores.
    """
    rule = rule or Rule()
    check_scores(selector)
    rule.check_room(budget.at(length))
    stream = torch.from_numpy(token_stream(documents or shipped_documents(), loaded.tokenizer)[0])
    steps = calibration_steps(len(stream), (length,), chunks * length, seed)[:chunks]
    generator = torch.Generator().manual_seed(seed)
    seen: dict[int, list[Tensor]] = {layer: [] for layer in selector.layers}
    wanted = 0
    for number, step in enumerate(steps):
        if progress is not None:
            progress(number, len(steps), f"thresholds of {selector.name} at {budget}")
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
            values = excess(score(selector, view, rule), selectable)[0]
            seen[layer].append(values.flatten(1))
            if layer == selector.layers[0]:
                always = (view.visible & ~selectable).sum(dim=-1).flatten()
                wanted += int((torch.tensor(budgets, device=always.device) - always).clamp_min(0).sum())
    cuts = {layer: _cut(torch.cat(values, dim=1), wanted) for layer, values in seen.items()}
    return Thresholds(cuts, str(budget))


def _cut(values: Tensor, wanted: int) -> Tensor:
    """What `wanted` of the values of each chooser, `(choosers, values)`, are above."""
    return values.topk(min(wanted + 1, values.shape[1]), dim=1).values[:, -1].cpu()
