"""Tasks in long texts: what they hide, where, how long they are, and that solvers of the tests' own find the answers."""

import re
from collections import Counter

import pytest

from sparsight.errors import ConfigError, TextError
from sparsight.evaluation.tasks import LONG_TASKS, make_prompts
from sparsight.evaluation.tasks.filling import Wanted, even_depth, fill, insert
from sparsight.evaluation.tasks.haystack import Haystack
from sparsight.evaluation.tasks.items import make_items
from sparsight.evaluation.tasks.needles import SHAPES
from sparsight.evaluation.tasks.pools import PASSAGES
from sparsight.evaluation.tasks.prompted import Prompted
from sparsight.evaluation.tasks.stored import FILES

GENERATED = [name for name in LONG_TASKS if name not in FILES]
NEEDLE = re.compile(r"Magic number of the (\w+ \w+): (\d+)\.")


def words(text: str) -> int:
    """Tokens of a tokenizer of words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def make(task, count=6, length=600, seed=0):
    return LONG_TASKS[task](Wanted(count, length, words, seed))


@pytest.mark.parametrize("task", GENERATED)
def test_items_depend_on_seed_and_length_alone(task):
    assert make(task) == make(task) == make(task, count=9)[:6]
    others = {item.answers for item in make(task, seed=1)}
    assert not others & {item.answers for item in make(task)}
    assert len({item.context for item in make(task)}) == 6


@pytest.mark.parametrize("length", [400, 1000, 6000])
@pytest.mark.parametrize("task", GENERATED)
def test_items_are_as_long_as_asked_for(task, length):
    for item in make(task, count=3, length=length):
        # What is left is at most a sentence.
        assert min(0.95 * length, length - 45) <= words(item.text) <= length and item.length == length
        assert item.text.startswith(item.prompt) and item.text.endswith(item.answers[-1])


@pytest.mark.parametrize("task", SHAPES)
def test_a_solver_of_needles_finds_the_answers(task):
    shape = SHAPES[task]
    for item in make(task, count=8):
        found = NEEDLE.findall(item.context)
        assert len(found) == shape.asked * shape.values + shape.others
        named = [key for key, _ in found if f"the {key}" in item.question]
        assert len(set(named)) == shape.asked
        assert item.answers == tuple(value for key, value in found if key in named)
        assert all(item.context.count(value) == 1 and value not in item.question for value in item.answers)
        assert len({key for key, _ in found}) == shape.asked + shape.others


def test_a_form_of_several_keys_names_the_key_before_each_answer():
    for item in make("needle-multi-query"):
        written = dict(re.findall(r"Magic number of the (\w+ \w+): (\d+)", item.text[len(item.context) :]))
        assert written == dict(NEEDLE.findall(item.context)) and tuple(written.values()) == item.answers


@pytest.mark.parametrize("task", ["needle-single", "needle-multi-key"])
def test_the_needle_is_where_it_should_be_and_depths_are_even(task):
    items = make(task, count=20, length=3000)
    for item in items:
        place = words(item.context[: item.context.index(item.answers[0])]) / words(item.context)
        assert place == pytest.approx(item.depth, abs=0.05)
    depths = sorted(item.depth for item in items)
    assert max(b - a for a, b in zip(depths, depths[1:], strict=False)) < 2.7 / len(depths)
    assert depths[0] < 0.1 and depths[-1] > 0.9


def test_a_solver_of_variables_finds_the_chain():
    for item in make("variable-tracking", count=8):
        copies = dict(re.findall(r"We copy (\w+) to ([A-Z]+)\.", item.context))
        held, chain = re.search(r"value (\d+) from", item.question)[1], []
        while (held := copies.get(held)) is not None:
            chain.append(held)
        assert tuple(chain) == item.answers and len(copies) == len(chain) == 4
        letters = "".join(chain)
        assert len(set(letters)) == len(letters) and not any(re.search(rf"\b{name}\b", item.question) for name in chain)
        at = [words(item.context[: item.context.index(f" to {name}.")]) for name in chain]
        assert at == sorted(at) and at[-1] - at[0] > 300


def test_counting_finds_the_most_frequent_words():
    for length in (150, 600):
        for item in make("frequent-words", length=length):
            counts = Counter(item.context.split("\n\n")[1].split())
            (a, x), (b, y), (c, z), (_, rest) = counts.most_common(4)
            assert (a, b, c) == item.answers and x > y > z > rest
            assert item.text.endswith(f"1. {a}\n2. {b}\n3. {c}")


def test_coreference_has_the_place_once_at_its_depth_among_the_passages():
    items = make("coreference", count=20, length=2000)
    known = {text for texts in PASSAGES.values() for text in texts}
    for item, source in zip(items, make_items(20, 0, 0), strict=True):
        assert item.answers == (source.place,) and item.question == source.question
        *paragraphs, end = item.context.split("\n\n")
        assert end == "" and item.context.count(source.place) == 1
        introduction = source.context.removesuffix("\n\n")
        assert paragraphs.index(introduction) / (len(paragraphs) - 1) == pytest.approx(item.depth, abs=0.05)
        rest = [paragraph for paragraph in paragraphs if paragraph != introduction]
        assert set(rest[:-1]) <= known and any(text.startswith(rest[-1]) for text in known)


def test_coreference_goes_on_when_all_passages_are_used():
    item = make("coreference", count=1, length=6000)[0]
    assert all(text in item.context for texts in PASSAGES.values() for text in texts)


def test_haystack_is_varied_and_longer_ones_begin_with_shorter_ones():
    hay = Haystack("a")
    first = hay(50)
    assert hay(3000)[:50] == first == Haystack("a")(50) != Haystack("b")(50)
    assert len(set(hay(3000))) > 2800
    for sentence in hay(3000):
        assert sentence[0].isupper() and sentence[-1] in ".?!" and not {"{", "}"} & set(sentence) and "  " not in sentence
        # Pieces small enough to fill a short item.
        assert words(sentence) <= 45
    assert not any("agic number" in sentence or "We copy" in sentence for sentence in hay(3000))


def test_insertion_keeps_order_and_depth():
    assert insert("abcd", [(0.5, "x"), (0.0, "y"), (1.0, "z")]) == ["y", "a", "b", "x", "c", "d", "z"]
    assert insert("", [(0.9, "x"), (0.2, "y")]) == ["y", "x"]


def test_filling_finds_the_most_that_fits():
    def build(pieces):
        return Prompted("t", "a " * pieces, "b", ("c",))

    for length in (2, 3, 50, 64, 65, 1000):
        assert words(fill(build, Wanted(1, length, words)).text) == length
    assert words(fill(build, Wanted(1, 1000, words), most=7).text) == 9
    assert words(fill(build, Wanted(1, 10, words), most=100).text) == 10
    with pytest.raises(TextError, match="needs 7 tokens, and length 6 was asked for; ask for at least 7"):
        fill(build, Wanted(1, 6, words), least=5)


def test_depths_of_a_longer_list_begin_with_those_of_a_shorter_one():
    assert all(0 <= even_depth(i, seed) < 1 for i in range(50) for seed in range(5))
    assert even_depth(3, 0) != even_depth(3, 1)


@pytest.mark.parametrize("task", GENERATED)
def test_a_length_that_holds_no_item(task):
    with pytest.raises(TextError, match=rf"an item of '{task}' needs \d+ tokens, and length 20 was asked for"):
        make(task, length=20)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": ["needle"]}, "tasks must be of needle-single, .* got 'needle'"),
        ({"tasks": []}, "got none"),
        ({"tasks": ["lambada", "lambada"]}, "task lambada is named more than once"),
        ({"lengths": [64, 64]}, "length 64 is named more than once"),
        ({"lengths": []}, "lengths must be 1 token or more, got none"),
        ({"lengths": [0]}, "lengths must be 1 token or more, got 0"),
        ({"count": 0}, "items must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_asked_for(change, message, stories):
    with pytest.raises(ConfigError, match=message):
        make_prompts(stories, **{"tasks": ["needle-single"], "lengths": [256], "count": 1, **change})


def test_a_length_beyond_the_context(stories):
    with pytest.raises(TextError, match="length 513 is beyond 512, the context of"):
        make_prompts(stories, ["needle-single"], [256, 513], 1)


def test_lengths_are_of_the_models_own_tokens(stories):
    items = make_prompts(stories, ["needle-single", "variable-tracking"], [384, 512], 2)
    assert [(item.task, item.length) for item in items] == [
        (task, length) for task in ("needle-single", "variable-tracking") for length in (384, 384, 512, 512)
    ]
    for item in items:
        # Its vocabulary is so small that a sentence is many tokens.
        assert item.length - 80 <= len(stories.tokenizer(item.text)["input_ids"]) <= item.length
