"""Texts of the co-reference task: an invented place, unrelated passages, a sentence that asks for the place."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ...errors import ConfigError
from .pools import PASSAGES, SCENES, SYLLABLES


@dataclass(frozen=True)
class Item:
    """One text and the name that it asks for.

    Attributes
    ----------
    context : str
        Introduction and passages, with the paragraph break that follows them.
    question : str
        Closing sentence, ending just before the name.
    place : str
    passages : int
        Passages between introduction and question.
    seed : int
        Of the `make_items` call.
    """

    context: str
    question: str
    place: str
    passages: int
    seed: int

    @property
    def prompt(self) -> str:
        """Everything the model is given."""
        return self.context + self.question

    @property
    def answer(self) -> str:
        """What has to follow the prompt."""
        return f" {self.place}"


def make_items(count: int, passages: int = 4, seed: int = 0) -> list[Item]:
    """Texts from a seed; no two of them share place and introduction.

    With the same seed the first items of a longer list are those of a shorter one, and items of different `passages`
    have the same places, introductions and first passages, so that distances can be compared item by item.

    Parameters
    ----------
    count : int
    passages : int
        Passages between introduction and question. Their topics take turns.
    seed : int

    Raises
    ------
    ConfigError
        If either number is out of range.
    """
    most = len(SCENES) * math.prod(map(len, SYLLABLES))
    if not 1 <= count <= most:
        raise ConfigError(f"items must be from 1 to {most}, the number of different texts there are, got {count}")
    pool = sum(map(len, PASSAGES.values()))
    if not 0 <= passages <= pool:
        raise ConfigError(f"passages must be from 0 to {pool}, the number of passages there are, got {passages}")
    rng = random.Random(f"coreference {seed}")
    seen: set[tuple[str, int]] = set()
    items = []
    while len(items) < count:
        place = "".join(rng.choice(part) for part in SYLLABLES)
        scene = rng.randrange(len(SCENES))
        order = _passages_in_order(random.Random(rng.getrandbits(64)))
        if (place, scene) in seen:
            continue
        seen.add((place, scene))
        introduction, question = SCENES[scene]
        paragraphs = [introduction.format(place=place), *order[:passages]]
        items.append(Item("\n\n".join([*paragraphs, ""]), question, place, passages, seed))
    return items


def _passages_in_order(rng: random.Random) -> list[str]:
    """All passages, each topic shuffled, one of each topic in turn."""
    topics = [rng.sample(texts, len(texts)) for texts in PASSAGES.values()]
    return [text for turn in zip(*rng.sample(topics, len(topics)), strict=True) for text in turn]
