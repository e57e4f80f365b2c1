import copy
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.report.examples import (
    BENCHMARKS,
    CLUSTERS,
    DENSE,
    REAL,
    WRITTEN_ANSWERS,
    changed,
    rehashed,
    token_result,
    write,
)

from sparsight.evaluation.intervals import clustered_mean
from sparsight.evaluation.results import ResultFile
from sparsight.report.columns import table
from sparsight.report.comparisons import compare
from sparsight.report.copying import copies
from sparsight.report.results import read_file, read_results
from sparsight.report.shapes import ShapeError
from sparsight.report.words import behind, front_sentence, point_name

GOOD = token_result()


def reason(path) -> str:
    """Why a file is left out, alone."""
    results, (left,) = read_results([path])
    assert results == [] and left.file == str(path) and "\n" not in left.reason
    return left.reason


@pytest.mark.parametrize("kind", REAL)
def test_a_real_file_of_each_kind_is_read(kind):
    content = json.loads(REAL[kind].read_text())
    results = read_file(REAL[kind])
    assert {r.kind for r in results} == {kind} and all(r.state == "" for r in results)
    points = [p for r in results for p in r.points]
    assert len(points) == len(content["rows"]) + (kind in ("units", "activations"))
    assert all(math.isfinite(p.value) for p in points) and all(p.source.hash == content.get("configuration_hash") for p in points)


def test_figures_of_a_row_are_those_of_the_file():
    row = next(r for r in GOOD["rows"] if (r["method"], r["budget"]) == ("lowrank", "1/8"))
    content = json.loads(REAL["speed"].read_text())
    (speed,) = read_file(REAL["speed"])
    for timed, point in zip(content["rows"], speed.points, strict=True):
        assert point.value == timed["ms_per_token"] and point.interval == (timed["ms_p10"], timed["ms_p90"])
        bound = 1e3 * timed["bytes_per_token"] / content["bandwidth"][str(timed["threads"])]
        assert point.figures["bound"] == bound and math.isclose(bound / point.value, timed["bandwidth_share"])
    unit = json.loads(REAL["units"].read_text())["rows"][3]
    (units,) = read_file(REAL["units"])
    assert math.isclose(math.exp(units.points[4].value), unit["ppl_ratio"]) and units.points[0].bytes == unit["bytes_dense"]
    assert (row["nll_delta"], row["bytes_per_token"]) != (0, 0)


def test_tokens(tmp_path):
    (result,) = read_file(write(tmp_path / "r.json", GOOD))
    row = next(r for r in GOOD["rows"] if (r["method"], r["budget"]) == ("lowrank", "1/8"))
    (point,) = (p for p in result.points if (p.method, p.budget) == ("lowrank", "1/8"))
    assert (point.value, list(point.interval), point.bytes) == (row["nll_delta"], row["nll_delta_ci"], row["bytes_per_token"])
    assert point.settings == "abc123 LowRankConfig(rank=16)" and point.figures["bytes_kv"] == row["bytes"]["kv"] and not point.ceiling
    assert next(p for p in result.points if p.method == "oracle").ceiling and result.points[0].source.text == "a.txt"


def test_written_answers_have_intervals_of_their_standard_error(tmp_path):
    (result,) = read_file(write(tmp_path / "h.json", WRITTEN_ANSWERS))
    low, high = result.points[1].interval
    assert result.kind == "written" and math.isclose((high - low) / 2, 1.96 * 0.05, rel_tol=1e-3)


def test_each_file_of_the_benchmarks_is_read_or_is_no_result():
    results, left_out = read_results([BENCHMARKS])
    assert {r.kind for r in results} == set(REAL)
    assert {left.reason for left in left_out} == {"is not a result of 'sparsight evaluate' or 'sparsight bench speed'"}
    assert len({p.source.file for r in results for p in r.points}) >= 35


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty; it was cut off"),
        (json.dumps(GOOD)[:2000], "it was cut off while it was written"),
        ("{'a': 1}", "is not JSON at line 1"),
        ("[" * 100_000, "is not JSON that can be read"),
        ("[]", "is not a result of"),
        ("17", "is not a result of"),
        ({"rows": []}, "is not a result of"),
        (json.dumps(GOOD).replace('"nll_delta": 0.0', '"nll_delta": NaN', 1), "NaN is no number of JSON"),
        (json.dumps(GOOD).replace('"nll_delta": 0.0', '"nll_delta": 1e999', 1), "has rows[0].nll_delta = Infinity, but a finite number"),
        (changed(GOOD, "configuration", "length", to=512), "its configuration_hash is not of; it was edited by hand"),
        (changed(GOOD, "configuration_hash", to=5), "its configuration_hash is not of"),
        (rehashed(changed(GOOD, "configuration", "format", to=3)), "is of format 3, but this version reads up to 2; upgrade sparsight"),
        (changed(GOOD, "rows", 2, "nll_delta", to="0.1"), 'has rows[2].nll_delta = "0.1", but a finite number in -10000..10000 was'),
        (changed(GOOD, "rows", 2, "nll_delta", to=True), "has rows[2].nll_delta = true"),
        (changed(GOOD, "rows", 2, "bytes_per_token", to=-1.0), "a finite number in 0..1e+18"),
        (changed(GOOD, "rows", 2, "bytes_per_token", to=10**400), "a finite number in 0..1e+18"),
        (changed(GOOD, "rows", 2, "bytes_per_token", to=1.0), "whose parts do not agree"),
        (changed(GOOD, "rows", 2, "mass_outside", to=1.5), "a finite number in 0..1"),
        (changed(GOOD, "rows", 2, "nll_delta_ci", to=[0.2, 0.1]), "an interval with its lower end first"),
        (changed(GOOD, "rows", 2, "nll_delta_ci", to=[0.8, 0.9]), "outside its interval"),
        (changed(GOOD, "rows", 2, "nll_delta_ci", to=[0.1]), "a list of 2"),
        (changed(GOOD, "rows", 2, "method", to="snapkv"), "which its configuration does not name"),
        (changed(GOOD, "rows", 2, "budget", to="1/3"), "which its configuration does not name"),
        (changed(changed(GOOD, "rows", 2, "nll_delta", to=0.0005), "rows", 2, "nll_delta_ci", to=[-1, 1]), "has a loss of 'lowrank at 1/4'"),
        (changed(GOOD, "losses", "dense", to=[1.0]), "has losses that do not fit its clusters"),
        (changed(GOOD, "rows", to=[]), "has rows = []"),
        (changed(GOOD, "rows", to="many"), "a list of"),
        ({k: v for k, v in GOOD.items() if k != "versions"}, "has no versions; it is of another version, unfinished or edited"),
        (changed(GOOD, "rows", 0, "mass_by_head", to=[[2.0]]), "has rows[0].mass_by_head[0][0] = 2.0"),
        (changed(GOOD, "versions", to=[1]), "has versions = [1]"),
    ],
)  # fmt: skip
def test_what_cannot_be_trusted_is_left_out_with_the_reason(tmp_path, content, said):
    assert said in reason(write(tmp_path / "r.json", content))


def test_speeds_that_cannot_be_are_left_out(tmp_path):
    content = json.loads(REAL["speed"].read_text())
    assert "no bandwidth of so many" in reason(write(tmp_path / "a.json", changed(content, "rows", 0, "threads", to=7)))
    assert "median is outside its percentiles" in reason(write(tmp_path / "b.json", changed(content, "rows", 0, "ms_p10", to=1e6)))
    newer = changed(content, "format", to=9)
    assert "is of format 9" in reason(write(tmp_path / "c.json", newer))


@pytest.mark.parametrize("kind", ["units", "activations", "tasks", "choice"])
def test_a_missing_key_of_each_kind_is_named(tmp_path, kind):
    content = json.loads(REAL[kind].read_text())
    key = {"units": "ppl_ratio", "activations": "bytes_saved", "tasks": "accuracy", "choice": "difference"}[kind]
    del content["rows"][1][key]
    assert f"has no rows[1].{key}" in reason(write(tmp_path / "r.json", content))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "r.json").write_bytes(b'{"a": "\xff"}')
    assert "is not text in UTF-8" in reason(tmp_path / "r.json")


def test_good_files_beside_bad_ones_and_folders(tmp_path):
    write(tmp_path / "deep" / "er" / "good.json", GOOD)
    write(tmp_path / "bad.json", "{")
    write(tmp_path / ".hidden.json.tmp", "{")
    write(tmp_path / "notes.txt", "{")
    (tmp_path / "empty").mkdir()
    results, left_out = read_results([tmp_path, tmp_path / "empty", tmp_path / "missing.json"])
    assert [r.kind for r in results] == ["tokens"]
    assert {left.file.rpartition("/")[2]: left.reason.partition(";")[0] for left in left_out} == {
        "bad.json": "is not JSON at line 1, column 2 (Expecting property name enclosed in double quotes)",
        "empty": "is a folder without any *.json or *.json.partial",
        "missing.json": "is not there",
    }


CHUNKS = [
    {"nll": {"dense": d, "lowrank|1/8": d + 0.01 * (i + 1)}, "share": {"lowrank|1/8": 0.125}, "recall": {}, "by_head": {}}
    for i, d in enumerate(DENSE)
]


def test_an_unfinished_run_shows_what_it_has_done(tmp_path):
    stated = {**GOOD["configuration"], "chunks": 64}
    for shard in (0, 1):
        file = ResultFile(tmp_path / "r.json", stated, shard)
        for i in range(shard, 4, 2):
            file.add(i, {"cluster": CLUSTERS[i], **CHUNKS[i]})
    with (tmp_path / "r.json.partial.1").open("a") as file:
        file.write('{"hash": "torn')
    (result,), left_out = read_results([tmp_path])
    assert left_out == [] and result.state == "4 of 64 chunks" and result.model == "tiny"
    point = result.points[1]
    mean, ends = clustered_mean([0.01, 0.02, 0.03, 0.04], CLUSTERS)
    assert math.isclose(point.value, mean) and point.interval == pytest.approx(ends) and point.bytes is None
    assert point.figures["share_read"] == 0.125 and point.settings == "abc123 LowRankConfig(rank=16)"
    assert str(tmp_path / "r.json.partial.0") in point.source.file and str(tmp_path / "r.json.partial.1") in point.source.file


def test_chunks_of_an_older_version_have_no_configuration_and_plain_intervals(tmp_path):
    lines = [json.dumps({"hash": "a" * 64, "chunk": i, **chunk}) for i, chunk in enumerate(CHUNKS)]
    (result,), _ = read_results([write(tmp_path / "r.json.partial", "\n" + "\n\n".join(lines))])
    _, plain = clustered_mean([0.01, 0.02, 0.03, 0.04], list("abcd"))
    assert result.points[1].interval == pytest.approx(plain) and result.state == "4 chunks, of an unknown number"
    assert dict(result.settings)["configuration hash"] == "a" * 64


def test_items_of_unfinished_tasks(tmp_path):
    stated = json.loads(REAL["tasks"].read_text())["configuration"]
    file = ResultFile(tmp_path / "t.json", stated)
    for i in range(4):
        did = {"dense": {"answers": [True], "share_read": 1.0}, "quest|1/8": {"answers": [i > 0, True], "share_read": 0.1}}
        file.add(i, {"task": "needle-single", "length": 2048, "did": did})
    (result,), _ = read_results([tmp_path])
    dense, quest = result.points
    assert (result.kind, result.state, dense.value, quest.value) == ("tasks", "4 of 300 items", 1.0, 0.75)
    assert quest.interval[0] < 0.75 < quest.interval[1] and quest.budget == "1/8"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\n", "is empty"),
        ('{"hash": "torn', "holds no chunk that is done yet"),
        (json.dumps({"hash": "a", "configuration": {"b": 1}}), "it was edited by hand"),
        (json.dumps({"hash": "a", "chunk": 0, "nll": {"x": 1.0}}), "not scored as the others were"),
        (json.dumps({"hash": "a", "chunk": 0, "nll": {"dense": None}}), "a finite number in -10000..10000"),
        (json.dumps({"hash": "a", "chunk": -1}), "a whole number from 0 on"),
        ("[1]", "an object was expected"),
    ],
)
def test_partial_files_that_cannot_be_trusted(tmp_path, text, said):
    assert said in reason(write(tmp_path / "r.json.partial", text))


def test_what_is_left_of_a_finished_run_is_not_shown_twice(tmp_path):
    write(tmp_path / "r.json", GOOD)
    write(tmp_path / "r.json.partial", json.dumps({"hash": "a", "chunk": 0, **CHUNKS[0]}))
    results, (left,) = read_results([tmp_path])
    assert len(results) == 1 and left.reason == "r.json beside it is finished"


def test_a_result_of_the_chunks_done_so_far_is_provisional(tmp_path):
    some = changed(GOOD, "configuration", "chunks", to=64)
    del some["configuration_hash"]
    (result,) = read_file(write(tmp_path / "r.json", some))
    assert result.state == "4 of 64 chunks"


def test_reading_one_bad_file_raises(tmp_path):
    with pytest.raises(ShapeError, match="is not JSON"):
        read_file(write(tmp_path / "r.json", "{"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3),
    max_leaves=4,
)
BEGINNINGS = [json.loads(REAL[kind].read_text()) for kind in REAL] + [GOOD, WRITTEN_ANSWERS]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_stands_anywhere_in_a_file_no_error_but_a_reason_comes(tmp_path, data):
    content = copy.deepcopy(data.draw(st.sampled_from(BEGINNINGS)))
    place = content
    for _ in range(data.draw(st.integers(0, 4))):
        if isinstance(place, dict | list) and place:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key]:
                place = place[key]
    key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(json_values)
    if isinstance(content.get("configuration"), dict) and "configuration_hash" in content:
        content = rehashed(content)
    results, left_out = read_results([write(tmp_path / "r.json", content)])
    assert bool(results) != bool(left_out)
    for one in compare(results):
        assert one.title and table(one).body and len(json.dumps(copies(table(one)))) > 10
        assert all(point_name(one, p) and behind(one, p) for p in one.points) and front_sentence(one) is not None
