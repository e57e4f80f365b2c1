import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report.examples import METHODS, token_result, write

from sparsight.report.comparisons import compare
from sparsight.report.html_page import titles
from sparsight.report.pareto import front
from sparsight.report.points import Point, Source
from sparsight.report.results import read_results
from sparsight.report.styles import COLOURS, MARKERS, order, plain, styles
from sparsight.report.words import front_items, front_sentence

SOURCE = Source("f.json")


def points(pairs, ceilings=()):
    return [Point(f"m{i}", "1/8", value, None, size, SOURCE, i in ceilings) for i, (size, value) in enumerate(pairs)]


few = st.sampled_from([0.0, 1.0, 2.0, 3.0])
any_points = st.lists(st.tuples(few | st.floats(0, 1e9), few | st.floats(-1e3, 1e3)), max_size=12)


@settings(max_examples=200, deadline=None)
@given(any_points, st.sets(st.integers(0, 11)), st.booleans())
def test_the_front_is_what_no_other_beats(pairs, ceilings, higher):
    given_points = points(pairs, ceilings)
    able = [p for p in given_points if not p.ceiling]
    sign = -1 if higher else 1

    def beaten(p):
        return any(
            q.bytes <= p.bytes and sign * q.value <= sign * p.value and (q.bytes < p.bytes or sign * q.value < sign * p.value) for q in able
        )

    found = front(given_points, higher)
    assert sorted(p.method for p in found) == sorted(p.method for p in able if not beaten(p))
    assert [p.bytes for p in found] == sorted(p.bytes for p in found)


def test_unknown_bytes_take_no_part():
    assert front([*points([(5, 1.0)]), Point("x", "", 0.0, None, None, SOURCE)])[0].method == "m0"


@pytest.mark.parametrize(
    "other",
    [{"model_hash": "2" * 64}, {"data_hash": "2" * 64}, {"length": 512}, {"scored": 32}, {"window": 16}, {"adaptive": "heads"}, {"interval": 4},
     {"format": 1}, {"dtype": "bfloat16"}],
)  # fmt: skip
def test_what_was_not_measured_alike_does_not_stand_in_one_plot(tmp_path, other):
    write(tmp_path / "a.json", token_result())
    write(tmp_path / "b.json", token_result(**other))
    found = compare(read_results([tmp_path])[0])
    assert len(found) == 2 and all(len(one.sources) == 1 for one in found)
    assert len({one.slug for one in found}) == 2


def test_files_of_the_same_protocol_are_put_together(tmp_path):
    write(tmp_path / "a.json", token_result())
    more = {"dense": METHODS["dense"], "snapkv": (0.2, "SnapKVConfig()", 0.1, True), "quest": (0.4, "QuestConfig(page_size=8)", 0.3, True)}
    write(tmp_path / "b.json", token_result(more, model="alias"))
    (one,) = compare(read_results([tmp_path])[0])
    assert one.methods == ["dense", "oracle", "lowrank", "quest (a.json)", "snapkv", "quest (b.json)"]
    assert sum(p.method == "dense" for p in one.points) == 1 and len(one.points) == 1 + 3 * 2 + 2 * 2
    assert {p.method for p in one.pareto} <= {"dense", "lowrank", "snapkv", "quest (a.json)", "quest (b.json)"}


def test_the_same_figure_twice_is_shown_once(tmp_path):
    write(tmp_path / "a.json", token_result())
    write(tmp_path / "b.json", token_result())
    (one,) = compare(read_results([tmp_path])[0])
    assert one.methods == ["dense", "oracle", "lowrank", "quest"] and len(one.points) == 7


def test_titles_say_what_differs(tmp_path):
    for i, other in enumerate(({}, {"chunks": 64}, {"format": 1}, {"adaptive": "heads"})):
        write(tmp_path / f"{i}.json", token_result(**other))
    found = titles(compare(read_results([tmp_path])[0]))
    assert len(set(found.values())) == 4 and any("adaptive heads" in title for title in found.values())


def test_styles_are_told_apart_by_colour_and_shape():
    names = [f"m{i}" for i in range(66)]
    found = styles(["dense", *names])
    assert len({(s.colour, s.marker) for s in found.values()}) == 67
    assert {s.colour for s in found.values()} == {*COLOURS, "#000000"} and len(MARKERS) == len(set(MARKERS))
    assert len({s.colour for s in styles(["a", "b", "c", "d", "e", "f"], [f"m{i}" for i in range(6)]).values()}) == 7
    assert styles(["quest", "m1"], ["m1", "quest"])["m1"] == styles(["m1"], ["m1", "quest"])["m1"]


def test_methods_of_most_comparisons_come_first():
    assert order([["dense", "a", "b"], ["dense", "b"], ["c", "b", "a"]])[:2] == ["b", "a"]


def test_labels_of_plots_are_plain():
    assert plain("a\x00b\n c") == "a·b c" and plain("_x").endswith("_x") and not plain("_x").startswith("_") and len(plain("x" * 99)) == 44


def test_the_front_in_words(tmp_path):
    (one,) = compare(read_results([write(tmp_path / "a.json", token_result({**METHODS, "harmless": (0.0, "H()", 0.5, True)}))])[0])
    said = front_sentence(one)
    assert f"{len(one.pareto)} points of 7 that can be deployed are not beaten" in said
    assert "Of those whose interval holds dense’s value, harmless at 1/8 reads least: 105.0 MB a token, 4.5% fewer than dense." in said
    assert front_items(one)[-1][0] == "harmless at 1/8" and front_items(one)[-1][1].startswith("105.0\N{NO-BREAK SPACE}MB, ")
