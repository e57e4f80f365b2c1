import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.errors import ConfigError
from sparsight.evaluation.repetition import Loop, ending_loop, repetition

texts = st.lists(st.integers(0, 5), max_size=60)
sizes = st.integers(1, 6)


def test_by_hand():
    assert repetition("abcdabcd") == 1 / 5
    assert repetition("aaaa", 1) == 3 / 4
    assert repetition("ababab", 2) == 3 / 5
    assert repetition("the cat sat".split()) == repetition([]) == 0.0


@given(texts, sizes)
def test_counts_the_ngrams_that_came_before(tokens, n):
    grams = ["".join(map(str, tokens[i : i + n])) for i in range(len(tokens) - n + 1)]
    before = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repetition(tokens, n) == (before / len(grams) if grams else 0.0)


@given(texts, sizes)
def test_stays_in_its_range_and_does_not_depend_on_names_or_direction(tokens, n):
    value = repetition(tokens, n)
    assert 0 <= value < 1
    assert repetition([f"word {t}" for t in tokens], n) == value == repetition(tokens[::-1], n)


@given(st.lists(st.integers(), unique=True, max_size=60), sizes)
def test_is_zero_if_nothing_recurs(tokens, n):
    assert repetition(tokens, n) == 0.0


@given(texts.filter(bool), sizes)
def test_saying_it_again_repeats_more(tokens, n):
    assert repetition(tokens * 2, n) >= repetition(tokens, n)
    assert repetition(tokens * 40, n) > 0.9 - n / 40


@given(
    st.lists(st.integers(0, 9), max_size=40),
    st.lists(st.integers(10, 10**6), unique=True, min_size=1, max_size=12),
    st.integers(3, 8),
    st.data(),
)
def test_finds_the_cycle_that_a_text_ends_in(start, cycle, times, data):
    part = data.draw(st.integers(0, len(cycle) - 1))
    loop = ending_loop(start + cycle * times + cycle[:part], fewest_tokens=1)
    assert loop == Loop(len(cycle), times * len(cycle) + part)


@given(texts, st.integers(1, 8), st.integers(2, 4), st.integers(1, 20))
def test_agrees_with_the_definition(tokens, longest, cycles, fewest):
    def periodic(covered, cycle):
        end = tokens[len(tokens) - covered :]
        return all(end[i] == end[i - cycle] for i in range(cycle, covered))

    expected = None
    for cycle in range(1, longest + 1):
        spans = [s for s in range(cycle, len(tokens) + 1) if periodic(s, cycle)]
        if spans and max(spans) >= max(cycles * cycle, fewest):
            expected = Loop(cycle, max(spans))
            break
    assert ending_loop(tokens, longest, cycles, fewest) == expected


def test_a_text_that_goes_on_after_a_loop_is_not_in_one():
    sentence = "I do not know what to say .".split()
    story = "Once upon a time there was a fox and it ran".split()
    assert ending_loop(story + sentence * 8) == Loop(8, 64)
    assert ending_loop(sentence * 8 + story) is None
    assert ending_loop(story + sentence * 3) is None, "24 tokens are less than 32"
    assert ending_loop([]) is None


def test_long_cycles_need_as_many_repeats():
    assert ending_loop([*range(100)] * 3) == Loop(100, 300)
    assert ending_loop([*range(100)] * 2) is None
    assert ending_loop([*range(200)] * 3) is None


@pytest.mark.parametrize("settings", [(0, 3, 32), (128, 1, 32), (128, 3, 0)])
def test_thresholds_out_of_range(settings):
    with pytest.raises(ConfigError, match="a loop needs"):
        ending_loop([1, 2], *settings)
    with pytest.raises(ConfigError, match="at least 1"):
        repetition([1, 2], 0)
