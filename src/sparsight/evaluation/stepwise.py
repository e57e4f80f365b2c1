"""Loss of text by real decode steps in the native decoder: what a user gets, rounding of weights and activations included."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..runtime import Plan
from ..runtime.decoder import Decoder
from .scoring import Chunk


def stepwise_losses(decoder: Decoder, chunk: Chunk, plans: Mapping[str, Plan | None]) -> dict[str, list[float]]:
    """Cross-entropy of the scored positions of a chunk, in nats, each predicted by a decode step.

    The tokens before the scored ones are prefilled once, densely; every plan then decodes from there.

    Parameters
    ----------
    decoder : Decoder
    chunk : Chunk
        Its ids are one more than its tokens: the last is only a target.
    plans : mapping of str to Plan or None
        None is dense.

    Returns
    -------
    dict of str to list of float, `(scored,)`
    """
    ids = chunk.ids.tolist()
    start = len(ids) - 1 - chunk.scored
    sequence = decoder.new_sequence()
    decoder.prefill(sequence, ids[:start], reserve=len(ids))
    losses = {}
    for name, plan in plans.items():
        found = []
        for token, target in zip(ids[start:-1], ids[start + 1 :], strict=True):
            logits = decoder.step([sequence], [token], plan).logits[0].astype(np.float64)
            top = logits.max()
            found.append(float(top + np.log(np.exp(logits - top).sum()) - logits[target]))
        losses[name] = found
        sequence.crop(-chunk.scored)
    return losses
