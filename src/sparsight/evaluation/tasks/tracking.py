"""Tasks that need many places of a text at once: variables that pass a value on, and words that are to be counted.

Both are shapes of RULER (Hsieh et al. 2024, arXiv:2404.06654), with wording of this package's own.
"""

from __future__ import annotations

import random
import string
from itertools import pairwise

from .filling import Wanted, even_depth, fill, insert
from .haystack import Haystack
from .prompted import Prompted

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
INTRODUCTION, COPY = "Remember the variables in the following text.\n\n", "We copy {} to"
HOPS, LETTERS = 3, 3
"""Copies after the first, and letters of a variable."""
SHARES = (0.4, 0.2, 0.1)
"""Of all words, the three most frequent ones; the others share the rest evenly."""
VOCABULARY = 30
"""Words that are not asked for."""
LEAST_WORDS = 60
"""From here on no word that is not asked for is as frequent as one that is."""


def variable_tracking(wanted: Wanted) -> list[Prompted]:
    """A value that is copied from variable to variable, in a haystack; all variables have to be named, in the order of the chain.

    The answer is a form that repeats the sentences of the text, which small models can go on with; each variable before is given in it.

    Raises
    ------
    TextError
        If the length does not hold the chain.
    """
    return [_chain(i, wanted) for i in range(wanted.count)]


def _chain(i: int, wanted: Wanted) -> Prompted:
    rng = random.Random(f"variables {wanted.seed} {i}")
    haystack = Haystack(f"haystack variables {wanted.seed} {i}")
    # No letter comes twice, so that the first token of a name tells it from the others.
    letters = rng.sample(string.ascii_uppercase, LETTERS * (HOPS + 1))
    names = ["".join(letters[j * LETTERS : (j + 1) * LETTERS]) for j in range(HOPS + 1)]
    value = str(rng.randrange(10_000, 100_000))
    depth = even_depth(i, wanted.seed)
    # The links follow one another at equal distances.
    placed = [((j + depth) / len(names), f"{COPY.format(source)} {name}.") for j, (source, name) in enumerate(pairwise((value, *names)))]
    question = f"Follow the value {value} from variable to variable. {COPY.format(value)}"
    joints = (" ", *(f". {COPY.format(name)} " for name in names[:-1]))

    def build(pieces: int) -> Prompted:
        context = INTRODUCTION + " ".join(insert(haystack(pieces), placed)) + "\n\n"
        return Prompted("variable-tracking", context, question, tuple(names), "", wanted.length, depth, wanted.seed, joints)

    return fill(build, wanted)


def frequent_words(wanted: Wanted) -> list[Prompted]:
    """Invented words, some far more often than others; the three most frequent ones have to be named, the most frequent first.

    Raises
    ------
    TextError
        If the length is too short for the order to be clear.
    """
    return [_words(i, wanted) for i in range(wanted.count)]


def _words(i: int, wanted: Wanted) -> Prompted:
    rng = random.Random(f"words {wanted.seed} {i}")
    words: list[str] = []
    while len(words) < len(SHARES) + VOCABULARY:
        word = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2)) + rng.choice(CONSONANTS)
        if word not in words:
            words.append(word)
    asked, others = words[: len(SHARES)], words[len(SHARES) :]
    order = rng.getrandbits(64)

    def build(pieces: int) -> Prompted:
        counts = [int(share * pieces) for share in SHARES]
        text = [word for word, count in zip(asked, counts, strict=True) for _ in range(count)]
        text += [others[n % len(others)] for n in range(pieces - len(text))]
        random.Random(order).shuffle(text)
        context = "Count the words in the following list.\n\n" + " ".join(text) + "\n\n"
        question = "The three most frequent words, the most frequent one first:\n1."
        return Prompted("frequent-words", context, question, tuple(asked), "", wanted.length, None, wanted.seed, (" ", "\n2. ", "\n3. "))

    return fill(build, wanted, least=LEAST_WORDS)
