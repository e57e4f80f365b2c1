"""Sentences to hide something in: the passages of the co-reference task, and between them sentences put together from parts.

All were written for this package. The parts give some hundred thousand sentences, so that a text of any length has few twice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice

from .pools import PASSAGES

PARTS = {
    "who": """a patient gardener|the writer of a good letter|every careful reader|an old teacher|the owner of a small shop
    |a tired traveller|the best of neighbours|a young carpenter|whoever keeps a diary|a modest scholar
    |the leader of an orchestra|a retired sailor|anyone who has moved house|a fair judge|the cook of a busy kitchen
    |a shy student|the keeper of an archive|a good listener|a father of four|the last guest at a party""",
    "truth": """hurry spoils more work than laziness|a debt grows quietly|silence can be an answer
    |the second attempt costs less than the first|praise is heard for a day and blame for a year
    |a plan is worth more than its first draft|nobody owns the weather|small repairs prevent large ones
    |a borrowed book is read faster|most quarrels begin with a guess|the road home seems shorter|a sharp tool is a safe one
    |memory prefers what was odd|good manners cost nothing|a habit is stronger than a promise|every map leaves something out
    |doubt is a useful servant|a closed door invites questions""",
    "do": """mend an old chair|walk in the rain|write with a pencil|wait for the slow train|learn a poem by heart
    |listen to both sides|eat breakfast alone|sweep the yard twice|paint the fence again|sleep with the window open
    |count the stairs|plant one more tree|leave the table early|read the last page first|take the longer path
    |keep the old kettle|sit by the stove|copy out a recipe""",
    "thing": """an unlit lamp|a well made table|the smell of cut grass|an honest mistake|a handful of nails|the first snow
    |a letter without a stamp|the noise of the market|a pair of warm gloves|the shadow of a pear tree|an empty bench
    |a good knife|the taste of plain bread|a clean sheet of paper|the end of a long song|a bucket of apples
    |a clock that is slow|the light in a kitchen""",
    "virtue": """patience|courage|humour|thrift|kindness|attention|modesty|curiosity|good sense|calm|loyalty|tact|discipline|imagination
    |gratitude|order""",
    "when": """in early spring|on a quiet Sunday|after a long illness|late in the evening|during the harvest|before an examination
    |at the end of the month|in the middle of winter|on the first warm day|when the guests have gone|after the rain
    |in a year without apples""",
}  # fmt: skip
"""What the sentences are made of."""

SENTENCES = """{who} learns sooner or later that {truth}.
{when}, {who} would rather {do} than {do}.
It is often said that {truth}, but it is just as true that {truth}.
There is a kind of {virtue} that only {who} knows, and it begins with {thing}.
Without {virtue}, {thing} means no more to us than {thing}.
What {who} calls {virtue} is mostly {virtue}, with a little {virtue}.
If {truth}, then {who} has good reason to {do}.
{when} it takes {virtue} to {do}.
To {do} {when} is not the same as to {do}.
{who} once compared {virtue} to {thing}, and nobody laughed.
We speak of {virtue} as if it were {thing}, though {truth}.
Nothing teaches {virtue} so well as {thing}, unless it is the need to {do}.""".split("\n")

_PARTS = {name: [" ".join(part.split()) for part in text.split("|")] for name, text in PARTS.items()}


def sentences(rng: random.Random) -> Iterator[str]:
    """Sentences without end: a passage, some that are put together, another passage, until all passages are used."""
    passages = [text for texts in PASSAGES.values() for text in texts]
    for passage in rng.sample(passages, len(passages)):
        yield from re.split(r"(?<=[.?!]) ", passage)
        yield from islice(_put_together(rng), 4)
    yield from _put_together(rng)


def _put_together(rng: random.Random) -> Iterator[str]:
    while True:
        parts = {name: iter(rng.sample(texts, len(texts))) for name, texts in _PARTS.items()}
        text = re.sub(r"{(\w+)}", lambda match, parts=parts: next(parts[match[1]]), rng.choice(SENTENCES))
        yield text[0].upper() + text[1:]


class Haystack:
    """Sentences of a seed, as many as are asked for; more of them begin with the fewer."""

    def __init__(self, seed: str) -> None:
        self._more, self._known = sentences(random.Random(seed)), list[str]()

    def __call__(self, count: int) -> list[str]:
        self._known += islice(self._more, max(count - len(self._known), 0))
        return self._known[:count]
