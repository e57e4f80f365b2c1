"""Tasks from files: what is made of them, and what is wrong with bad ones."""

import gzip
import json
import re

import pytest

from sparsight.errors import StorageError, TextError
from sparsight.evaluation.tasks.filling import Wanted
from sparsight.evaluation.tasks.stored import FILES, key_value, lambada


def words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def record(n, pairs=6):
    listed = [[f"key{n}x{j}", f"value{n}x{j}"] for j in range(pairs)]
    return {"ordered_kv_records": listed, "key": f"key{n}x2", "value": f"value{n}x2", "more": 1}


def write(folder, task, lines):
    part, name, _ = FILES[task]
    path = folder / part / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def wanted(data, count=3, length=100, seed=0):
    return Wanted(count, length, words, seed, data)


@pytest.fixture
def pairs(tmp_path):
    return write(tmp_path, "key-value", [json.dumps(record(n)) for n in range(5)])


def test_the_context_is_json_that_holds_the_answer_at_its_depth(tmp_path, pairs):
    for item in key_value(wanted(tmp_path, 5)):
        told = json.loads(item.context)
        key = re.search(r'the key "(.*)" is "$', item.question)[1]
        assert (told[key],) == item.answers and item.text == item.prompt + told[key]
        assert list(told).index(key) == round(item.depth * (len(told) - 1))
        # One more pair would not fit.
        assert 100 - words(' "a": "b",') < words(item.text) <= 100 and len(told) > 6


def test_pairs_run_out_only_with_the_file(tmp_path, pairs):
    item = key_value(wanted(tmp_path, 1, 10_000))[0]
    assert len(json.loads(item.context)) == 30
    with pytest.raises(TextError, match="'key-value' needs .* length 20 was asked for"):
        key_value(wanted(tmp_path, 1, 20))


def test_a_seed_gives_an_order_of_the_rows(tmp_path, pairs):
    first = key_value(wanted(tmp_path, 5))
    assert first == key_value(wanted(tmp_path, 5)) and first[:2] == key_value(wanted(tmp_path, 2))
    other = key_value(wanted(tmp_path, 5, seed=1))
    assert [i.answers for i in first] != [i.answers for i in other] and {i.answers for i in first} == {i.answers for i in other}


def test_the_file_may_be_given_unpacked_or_in_the_folder_itself(tmp_path, pairs):
    expected = key_value(wanted(tmp_path))
    assert key_value(wanted(pairs)) == key_value(wanted(pairs.parent)) == expected
    pairs.with_suffix("").write_bytes(gzip.decompress(pairs.read_bytes()))
    pairs.unlink()
    assert key_value(wanted(tmp_path)) == expected


def test_the_last_word_follows_the_passage(tmp_path):
    write(tmp_path, "lambada", [json.dumps({"context": "He came, saw and\u2028went ", "continuation": "home"})])
    item = lambada(wanted(tmp_path, 1))[0]
    assert item.text == "He came, saw and\u2028went home" and item.question == "" and item.length is None


@pytest.mark.parametrize("task, make", [("key-value", key_value), ("lambada", lambada)])
def test_a_missing_file_is_named_with_the_option_that_gives_it(task, make, tmp_path):
    part, name, _ = FILES[task]
    for data in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TextError, match=rf"{part}/{re.escape(name)}.*--tasks-data.*leave {task} out"):
            make(wanted(data))


GOOD = json.dumps(record(0))


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "is not a JSON object; a row is one object with ordered_kv_records, key, value"),
        ("[1]", "is not a JSON object"),
        ("", "is not a JSON object"),
        (json.dumps({"key": "a", "value": "b"}), "has no ordered_kv_records"),
        (json.dumps({**record(0), "key": "other"}), "key should be one of the keys of ordered_kv_records, got \"other\""),
        (json.dumps({**record(0), "value": "other"}), "value should be the value of the key in ordered_kv_records"),
        (json.dumps({**record(0), "value": ["x"]}), "value should be the value of the key"),
        (json.dumps({**record(0), "ordered_kv_records": [["a"]]}), "should be a list of pairs of texts"),
        (json.dumps({**record(0), "ordered_kv_records": []}), "should be a list of pairs of texts"),
        (json.dumps({**record(0), "ordered_kv_records": {"a": "b"}}), "should be a list of pairs of texts"),
        (json.dumps({**record(0), "key": ["a"]}), "key should be one of the keys"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(line, message, tmp_path):
    path = write(tmp_path, "key-value", [GOOD, line, GOOD])
    with pytest.raises(TextError) as error:
        key_value(wanted(tmp_path))
    assert str(error.value).startswith(f"{path} line 2") and message in str(error.value)


def test_files_that_cannot_be_used(tmp_path, pairs):
    with pytest.raises(TextError, match="holds 5 rows, and 6 items were asked for"):
        key_value(wanted(tmp_path, 6))
    whole = pairs.read_bytes()
    for data in (b"not gzip", whole[:40]):
        pairs.write_bytes(data)
        with pytest.raises(TextError, match="is not a whole gzip file"):
            key_value(wanted(tmp_path))
    pairs.write_bytes(gzip.compress(b""))
    with pytest.raises(TextError, match="holds 0 rows, and 3 items were asked for"):
        key_value(wanted(tmp_path))
    pairs.write_bytes(gzip.compress(GOOD.encode() + b"\n\xff\n"))
    with pytest.raises(TextError, match="line 2 is not UTF-8"):
        key_value(wanted(tmp_path))
    pairs.unlink()
    pairs.mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        key_value(wanted(tmp_path))


def test_the_real_files(shared_data):
    for item in key_value(wanted(shared_data, 3, 800)):
        assert json.loads(item.context)[item.question.split('"')[1]] == item.answers[0]
    for item in lambada(wanted(shared_data, 50)):
        assert " " not in item.answers[0] and item.text == f"{item.context} {item.answers[0]}"
