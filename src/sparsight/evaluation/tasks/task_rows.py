"""Figures of tasks: accuracy, accuracy where dense is right, loss of the answer, bytes; a row a task, length, method and budget."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ...models import LoadedModel
from ...runtime import Rule
from ...tokens import Dense, Geometry, Selector
from ..bytes import bytes_kept, bytes_per_token
from ..intervals import clustered_mean
from .coreference import DENSE, FULL
from .prompted import Prompted
from .scores import wilson_interval

if TYPE_CHECKING:
    from .long_scores import Method


def task_rows(
    loaded: LoadedModel, items: Sequence[Prompted], methods: Sequence[Method], outcomes: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Means over the items of each task and length.

    Parameters
    ----------
    loaded : LoadedModel
    items, outcomes : sequences, one for each item
    methods : sequence of Method

    Returns
    -------
    list of dict
        By task and length in the order of the items, dense first, then methods as given. Keys:

        - "task", "length" (None for texts of their own length), "method", "budget", "items", "deployable";
        - "accuracy": share of items with every answer token right (`answering.Forced`); "answers_right": share of answers wholly right;
        - "dense_right": items that dense gets right; "given_dense": accuracy among these; "answers_given_dense": share of the answers that
          dense gets right, averaged over the items where there are any;
        - "written": share of the answers that decoding writes, and "written_given_dense" among the items of which dense writes all; only if
          the answers were generated;
        - each of these with the ending `_interval`, Wilson's of 95 %; both are None over no item;
        - "nll", "nll_delta" (nats a token of the answer, less the dense model's) and "nll_delta_interval" (t, clustered);
        - means over items of "prompt_tokens", "answer_tokens", "budget_tokens", "share_read" and "bytes_per_token" (bytes that the step
          which predicts the answer's first token reads), "bytes_kept".
    """
    rows = []
    for task, length in dict.fromkeys((item.task, item.length) for item in items):
        here = [i for i, item in enumerate(items) if (item.task, item.length) == (task, length)]
        # Items without a cluster are clusters of their own.
        clusters = [items[i].cluster or f"item {i}" for i in here]
        found = [outcomes[i] for i in here]
        dense = Dense(Dense.Config(), Geometry.of(loaded.anatomy))
        for key, name, budget, selector, rule in (
            (DENSE, DENSE, FULL, dense, None),
            *((m.key, m.name, str(m.budget), m.selector, m.rule) for m in methods),
        ):
            rows.append(
                {
                    "task": task,
                    "length": length,
                    "method": name,
                    "budget": budget,
                    "items": len(here),
                    **_scores([o["did"][key] for o in found], [o["did"][DENSE] for o in found], clusters),
                    **_sizes(loaded, selector, rule, found, key),
                    "deployable": selector.deployable,
                }
            )
    return rows


def _scores(did: list[dict[str, Any]], dense: list[dict[str, Any]], clusters: list[str]) -> dict[str, Any]:
    kept = [all(a["answers"]) for a, b in zip(did, dense, strict=True) if all(b["answers"])]
    shared = [
        fmean(x for x, known in zip(a["answers"], b["answers"], strict=True) if known)
        for a, b in zip(did, dense, strict=True)
        if any(b["answers"])
    ]
    row: dict[str, Any] = {"dense_right": len(kept)}
    totals = {
        "accuracy": (sum(all(d["answers"]) for d in did), len(did)),
        "answers_right": (sum(fmean(d["answers"]) for d in did), len(did)),
        "given_dense": (sum(kept), len(kept)),
        # The answers of one item stand or fall together, so the interval counts items, not answers.
        "answers_given_dense": (sum(shared), len(shared)),
    }
    if "written" in dense[0]:
        whole = [a["written"] for a, b in zip(did, dense, strict=True) if b["written"] == 1]
        totals["written"] = sum(d["written"] for d in did), len(did)
        totals["written_given_dense"] = sum(whole), len(whole)
    for key, (total, count) in totals.items():
        row[key] = total / count if count else None
        row[f"{key}_interval"] = list(wilson_interval(total, count)) if count else None
    delta, interval = clustered_mean([a["nll"] - b["nll"] for a, b in zip(did, dense, strict=True)], clusters)
    nll = {"nll": fmean(d["nll"] for d in did), "nll_delta": delta, "nll_delta_interval": list(interval) if interval else None}
    return {**row, **nll}


def _sizes(loaded: LoadedModel, selector: Selector, rule: Rule | None, found: list[dict[str, Any]], key: str) -> dict[str, float]:
    lengths = [o["prompt_tokens"] for o in found]
    # A budget can be more than there is when the first token of the answer is predicted.
    budgets = [min(o["did"][key]["budget"] or length, length) for o, length in zip(found, lengths, strict=True)]
    pairs = list(zip(budgets, lengths, strict=True))
    return {
        "prompt_tokens": fmean(lengths),
        "answer_tokens": fmean(o["answer_tokens"] for o in found),
        "budget_tokens": fmean(budgets),
        "share_read": fmean(o["did"][key]["share_read"] for o in found),
        "bytes_per_token": fmean(bytes_per_token(loaded.anatomy, selector, b, n, rule)["total"] for b, n in pairs),
        "bytes_kept": fmean(bytes_kept(loaded.anatomy, selector, b, n) for b, n in pairs),
    }
