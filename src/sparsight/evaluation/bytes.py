"""Bytes that one decode step reads: weights, KV cache, importance keys, predictor. The x-axis of every comparison.

Weights, keys and values count two bytes an element (bfloat16), importance keys what they are kept in.
"""

from __future__ import annotations

from ..models import Anatomy
from ..runtime import Rule
from ..tokens import Selector

ELEMENT = 2


def kv_bytes(anatomy: Anatomy, layer: int, tokens: float, length: int) -> float:
    """Bytes of keys and values of `tokens` tokens at a layer; a sliding-window layer is counted whole, as if it were dense."""
    read = tokens if layer in anatomy.full_attention else length
    return 2 * ELEMENT * read * anatomy.kv_heads * anatomy.head_dim


def bytes_per_token(
    anatomy: Anatomy, selector: Selector, budget: float, length: int, rule: Rule | None = None
) -> dict[str, float]:
    """Bytes read in one decode step with `length` tokens in the cache.

    Parameters
    ----------
    anatomy : Anatomy
    selector : Selector
    budget : float
        Tokens a KV head reads in selecting layers; at or above `length` nothing is selected and nothing of the predictor is read.
    length : int
    rule : Rule, optional
        With an interval, importance keys are read at every n-th step only; the predictor's weights are counted at each, as some make the
        keys. With pages, two keys a page and those of the pages that stay are read.

    Returns
    -------
    dict
        "weights", "kv", "index" (importance keys), "predictor" (its weights, and model weights read a second time), "total".
    """
    selecting = set(selector.layers) if budget < length else set()
    # What an evictor looks at is what it still holds.
    looked_at = budget if selector.permanent else length
    parts = {
        "weights": float(ELEMENT * anatomy.weight_elements()["total"]),
        "kv": float(sum(_kv(anatomy, selector, i, i in selecting, budget, length) for i in range(anatomy.layers))),
        "index": float(sum(selector.index_bytes(i, looked_at) for i in selecting)) * _index_share(selector, rule),
        "predictor": float(ELEMENT * (selector.parameter_count() + selector.extra_weight_elements()))
        if selecting
        else 0.0,
    }
    return {**parts, "total": sum(parts.values())}


def bytes_kept(anatomy: Anatomy, selector: Selector, budget: float, length: int) -> float:
    """Bytes of the cache that still exist with `length` tokens in the sequence: keys, values and what the method keeps beside them.

    Parameters are those of `bytes_per_token`. A selector keeps everything, an evictor `budget` rows a KV head.
    """
    choosing = set(selector.layers) if budget < length else set()
    held = budget if selector.permanent else length
    kv = sum(_kv(anatomy, selector, i, i in choosing and selector.permanent, held, length) for i in range(anatomy.layers))
    return float(kv + sum(selector.state_bytes(i, held) for i in choosing))


def _kv(anatomy: Anatomy, selector: Selector, layer: int, chooses: bool, rows: float, length: int) -> float:
    if chooses and selector.permanent:
        return anatomy.kv_heads * selector.kv_bytes(rows)
    return kv_bytes(anatomy, layer, rows if chooses else length, length)


def _index_share(selector: Selector, rule: Rule | None) -> float:
    """Share of the importance keys that a step reads, on average."""
    if rule is None:
        return 1.0
    paged = rule.pages and selector.has_pages
    return (2 / rule.pages + rule.page_share if paged else 1.0) / rule.interval


def state_fraction(anatomy: Anatomy, selector: Selector, held: float, length: int) -> float:
    """Bytes kept beside the `held` tokens that are left of `length`, as a share of the whole KV cache."""
    state = sum(selector.state_bytes(i, held) for i in selector.layers)
    return state / sum(kv_bytes(anatomy, i, length, length) for i in range(anatomy.layers))
