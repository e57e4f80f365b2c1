"""The co-reference task as long as it is asked to be, the place at any depth, in the shape of the other long tasks."""

from __future__ import annotations

import re

from .filling import Wanted, even_depth, fill
from .haystack import Haystack
from .items import Item, make_items
from .pools import PASSAGES
from .prompted import Prompted

PARAGRAPH = 5
"""Sentences a paragraph, of those that follow when all passages are used."""


def coreference_task(wanted: Wanted) -> list[Prompted]:
    """Items of `make_items` with as many passages as fit, and of the last one as many sentences; the introduction stands between two of them.

    Raises
    ------
    TextError
        If the length does not hold introduction and question.
    """
    items = make_items(wanted.count, sum(map(len, PASSAGES.values())), wanted.seed)
    return [_item(item, i, wanted) for i, item in enumerate(items)]


def _item(item: Item, i: int, wanted: Wanted) -> Prompted:
    introduction, *passages = item.context.removesuffix("\n\n").split("\n\n")
    sentences = [(p, sentence) for p, passage in enumerate(passages) for sentence in re.split(r"(?<=[.?!]) ", passage)]
    haystack = Haystack(f"haystack coreference {wanted.seed} {i}")
    depth = even_depth(i, wanted.seed)

    def build(pieces: int) -> Prompted:
        paragraphs: list[list[str]] = []
        more = [(len(passages) + n // PARAGRAPH, text) for n, text in enumerate(haystack(max(pieces - len(sentences), 0)))]
        for number, sentence in (*sentences[:pieces], *more):
            if number == len(paragraphs):
                paragraphs.append([])
            paragraphs[number].append(sentence)
        texts = [" ".join(paragraph) for paragraph in paragraphs]
        texts.insert(round(depth * len(texts)), introduction)
        context = "\n\n".join([*texts, ""])
        return Prompted("coreference", context, item.question, (item.place,), length=wanted.length, depth=depth, seed=item.seed)

    return fill(build, wanted)
