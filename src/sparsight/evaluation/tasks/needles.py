"""Needles in a haystack: sentences that name a number, hidden in unrelated text, and a question that needs one or several of them.

The four shapes are those of RULER (Hsieh et al. 2024, arXiv:2404.06654): one needle; one asked of many; several values of one key; several
keys asked. Texts and wording are this package's own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from .filling import Wanted, even_depth, fill, insert
from .haystack import Haystack
from .prompted import Prompted

COLOURS = """amber azure black bronze brown copper coral cream crimson golden green grey indigo ivory jade lilac maroon olive orange pearl
pink purple red ruby scarlet silver teal violet white yellow""".split()
ANIMALS = """badger beaver bison buffalo camel cobra crane deer dolphin eagle falcon ferret fox gecko giraffe hare hawk hedgehog heron horse
jackal jaguar koala lemur leopard lion lizard lynx magpie marten monkey moose otter panda panther parrot pelican penguin pigeon puma rabbit
raven rhino seal shark sheep squirrel stork swan tiger toad trout turtle walrus weasel whale wolf wombat zebra""".split()
"""A key is a colour and an animal. The haystack speaks of animals too, but never so."""

INTRODUCTION = "Numbers are hidden in the following text. Remember them.\n\n"
NEEDLE, CUE = "Magic number of the {key}: {value}.", "Magic number of the {key}:"


@dataclass(frozen=True)
class Shape:
    """How many needles there are, and what is asked.

    Attributes
    ----------
    asked : int
        Keys that the question names.
    values : int
        Numbers, each in a needle of its own, of every key that is asked.
    others : int
        Keys that are not asked, one number each.
    digits : int
    """

    asked: int = 1
    values: int = 1
    others: int = 0
    digits: int = 5

    @property
    def least(self) -> int:
        """Needles."""
        return self.asked * self.values + self.others


SHAPES = {
    "needle-single": Shape(),
    "needle-multi-key": Shape(others=7),
    "needle-multi-value": Shape(values=4),
    "needle-multi-query": Shape(asked=4),
}


def needle_task(name: str, wanted: Wanted) -> list[Prompted]:
    """Items of one of the `SHAPES`; with the same seed and length the first ones of a longer list are those of a shorter one.

    Raises
    ------
    ConfigError
        If there is no such shape.
    TextError
        If the length does not hold the needles.
    """
    if name not in SHAPES:
        raise ConfigError(f"no needle task {name!r}; choose from {', '.join(SHAPES)}")
    return [_item(name, SHAPES[name], i, wanted) for i in range(wanted.count)]


def _item(name: str, shape: Shape, i: int, wanted: Wanted) -> Prompted:
    rng = random.Random(f"{name} {wanted.seed} {i}")
    haystack = Haystack(f"haystack {name} {wanted.seed} {i}")
    keys = _keys(rng, shape.asked + shape.others)
    low = 10 ** (shape.digits - 1)
    values = [str(value) for value in rng.sample(range(low, 10 * low), shape.least)]
    owners = [key for key in keys[: shape.asked] for _ in range(shape.values)] + keys[shape.asked :]
    depth = even_depth(i, wanted.seed)
    depths = _depths(rng, depth, shape.least)
    placed = sorted(zip(depths, owners, values, strict=True))
    needles = [(at, NEEDLE.format(key=key, value=value)) for at, key, value in placed]
    # The answers are asked for in the order in which they stand in the text.
    answers = tuple(value for _, key, value in placed if key in keys[: shape.asked])
    asked = list(dict.fromkeys(key for _, key, _ in placed if key in keys[: shape.asked]))

    def build(pieces: int) -> Prompted:
        context = INTRODUCTION + " ".join(insert(haystack(pieces), needles)) + "\n\n"
        return Prompted(
            name, context, _question(asked, shape.values), answers, "", wanted.length, depth, wanted.seed, _joints(asked, len(answers))
        )

    return fill(build, wanted)


def _keys(rng: random.Random, count: int) -> list[str]:
    """Keys without a word in common."""
    return [f"{a} {b}" for a, b in zip(rng.sample(COLOURS, count), rng.sample(ANIMALS, count), strict=True)]


def _depths(rng: random.Random, depth: float, count: int) -> list[float]:
    """The given depth first; with it the others are spread evenly, in any order."""
    step = 1 / count
    others = [(depth + j * step) % 1 for j in range(1, count)]
    return [depth, *rng.sample(others, len(others))]


def _question(keys: Sequence[str], values: int) -> str:
    if values > 1:
        return f"All magic numbers of the {keys[0]}:"
    cue = CUE.format(key=keys[0])
    if len(keys) == 1:
        return cue
    return f"What are the magic numbers of the {', the '.join(keys[:-1])} and the {keys[-1]}? {cue}"


def _joints(keys: Sequence[str], answers: int) -> tuple[str, ...]:
    """What stands before each answer: several keys are named again, as in a form."""
    if len(keys) == 1:
        return (" ", *(", " for _ in range(answers - 1)))
    return (" ", *(f". {CUE.format(key=key)} " for key in keys[1:]))
