"""What counts as text: documents, splits, token streams, windows, and overlap between texts."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.errors import ConfigError, StorageError, TextError
from sparsight.training.text import (
    Document,
    hash_documents,
    overlap,
    read_documents,
    shingles,
    split_held_out,
    token_stream,
)
from sparsight.training.windows import chunks, window

WIKITEXT = Path(__file__).resolve().parents[3] / "shared/data/wikitext-2/test.raw.txt"
TWO_ARTICLES = """ \n = First one = \n \n Words here . \n = 1 rad / s and a nominal impedance k = \n More . \n = a + b =
 \nThen : \n \n = c + d = \n follows . \n = = Section = = \n \n Some . \n \n = Second = \n \n Other words . \n"""


class CharacterTokenizer:
    """One token per character; records what it was asked for."""

    def __call__(self, text, **options):
        assert options["add_special_tokens"] is False
        return {"input_ids": [ord(character) for character in text]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_folder_is_read_to_any_depth_in_sorted_order(tmp_path):
    write(tmp_path / "b.txt", "b text")
    write(tmp_path / "a/deep/z.md", "z text")
    write(tmp_path / "a/code.py", "not text")
    write(tmp_path / "SOURCE.md", "provenance")
    single = write(tmp_path / "a/code.py", "given by name")
    documents = read_documents([tmp_path, str(single)])
    assert [(d.name, d.text) for d in documents] == [
        ("a/deep/z.md", "z text"),
        ("b.txt", "b text"),
        ("code.py", "given by name"),
    ]


def test_a_single_path_may_stand_alone(tmp_path):
    assert read_documents(str(write(tmp_path / "one.txt", "x")))[0].name == "one.txt"


def test_byte_order_mark_and_line_ends_do_not_change_the_text(tmp_path):
    plain = read_documents([write(tmp_path / "a.txt", "one\ntwo\n")])
    odd = read_documents([write(tmp_path / "b.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")])
    assert plain[0].sha256 == odd[0].sha256


def test_articles_are_parted_at_headings_but_not_at_formulas_or_sections(tmp_path):
    documents = read_documents([write(tmp_path / "w.txt", TWO_ARTICLES)])
    assert [d.name for d in documents] == ["w.txt#First one", "w.txt#Second"]
    assert "= = Section = =" in documents[0].text and "nominal impedance" in documents[0].text
    assert documents[1].text.startswith(" = Second = ")


def test_text_before_the_first_heading_is_kept(tmp_path):
    documents = read_documents([write(tmp_path / "w.txt", "Preface.\n" + TWO_ARTICLES)])
    assert [d.name for d in documents] == ["w.txt", "w.txt#First one", "w.txt#Second"]
    assert documents[0].text.startswith("Preface.")


def test_wikitext_has_its_sixty_articles():
    if not WIKITEXT.exists():
        pytest.skip("WikiText-2 is not at ../shared/data; it is not part of the package")
    documents = read_documents([WIKITEXT])
    assert len(documents) == 60
    assert documents[1].name == "test.raw.txt#Du Fu"
    assert "\n".join(d.text for d in documents).strip() == WIKITEXT.read_text(encoding="utf-8").strip()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty"), (b" \n\t\n", "white space"), (b"caf\xe9 au lait", "0xe9 at offset 3")],
)
def test_unusable_files_are_named_in_one_line(tmp_path, content, expected):
    path = write(tmp_path / "bad.txt", content)
    with pytest.raises(TextError, match=expected) as caught:
        read_documents([path])
    assert "bad.txt" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_path_empty_folder_and_no_paths_are_errors(tmp_path):
    with pytest.raises(TextError, match="nowhere.txt"):
        read_documents([tmp_path / "nowhere.txt"])
    with pytest.raises(TextError, match="holds no"):
        read_documents([tmp_path])
    with pytest.raises(TextError, match="got none"):
        read_documents([])


def test_unreadable_file_is_a_storage_error(tmp_path, monkeypatch):
    path = write(tmp_path / "locked.txt", "x")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StorageError, match="locked.txt.*Permission denied"):
        read_documents([path])


def test_hash_depends_on_texts_and_order_but_not_on_names():
    a, b = Document("a", "one"), Document("b", "two")
    assert hash_documents([a, b]) == hash_documents([Document("x", "one"), Document("y", "two")])
    assert hash_documents([a, b]) != hash_documents([b, a])
    assert hash_documents([a, b]) != hash_documents([Document("ab", "onetwo")])


@given(
    texts=st.lists(st.text("ab ", min_size=1, max_size=30), min_size=2, max_size=20, unique=True),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_split_parts_documents_without_loss(texts, fraction, seed):
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    train, held = split_held_out(documents, fraction, seed)
    assert train and held
    assert sorted([*train, *held], key=lambda d: int(d.name)) == documents
    assert (train, held) == split_held_out(documents, fraction, seed)
    if len(held) > 1:
        assert sum(len(d.text) for d in held) <= fraction * sum(map(len, texts))


def test_split_differs_between_seeds_and_comes_near_the_fraction():
    documents = [Document(str(i), f"{i:05d}" * 20) for i in range(100)]
    held = [split_held_out(documents, 0.1, seed)[1] for seed in range(3)]
    assert [len(part) for part in held] == [10, 10, 10]
    assert held[0] != held[1]


def test_equal_texts_never_stand_on_both_sides():
    documents = [Document(str(i), f"text {i % 3}") for i in range(9)]
    for seed in range(5):
        train, held = split_held_out(documents, 0.3, seed)
        assert not {d.text for d in train} & {d.text for d in held}


def test_single_document_is_parted_at_a_paragraph():
    text = "\n\n".join(f"Paragraph {i} has words." for i in range(100))
    (train,), (held,) = split_held_out([Document("one", text)], 0.1, 0)
    assert train.text + held.text == text
    assert held.text.startswith("Paragraph 9")
    assert (train.name, held.name) == ("one[:90%]", "one[90%:]")


def test_split_errors():
    with pytest.raises(TextError, match="no white space"):
        split_held_out([Document("one", "x" * 50)], 0.1, 0)
    with pytest.raises(TextError, match="got none"):
        split_held_out([], 0.1, 0)
    with pytest.raises(ConfigError, match="fraction"):
        split_held_out([Document("one", "a b")], 1.0, 0)


def test_token_stream_knows_the_document_of_each_token():
    documents = [Document("a", "abc"), Document("b", "de")]
    ids, document_of = token_stream(documents, CharacterTokenizer(), eos_id=0)
    assert ids.tolist() == [97, 98, 99, 0, 100, 101] and ids.dtype == np.int64
    assert document_of.tolist() == [0, 0, 0, 0, 1, 1] and document_of.dtype == np.int32
    assert token_stream(documents, CharacterTokenizer())[0].tolist() == [97, 98, 99, 100, 101]


def test_token_stream_errors():
    with pytest.raises(TextError, match="b: the tokenizer found no token"):
        token_stream([Document("a", "x"), Document("b", "")], CharacterTokenizer())
    with pytest.raises(TextError, match="got none"):
        token_stream([], CharacterTokenizer())


def test_chunks_are_spread_evenly_and_have_a_last_target():
    ids = np.arange(1001)
    assert chunks(ids, 100).tolist() == list(range(0, 1000, 100))
    assert chunks(ids[:-1], 100).tolist() == list(range(0, 900, 100))
    assert chunks(ids, 100, 3).tolist() == [0, 300, 600]
    assert chunks(ids, 100, stride=50).tolist() == list(range(0, 901, 50))


@given(tokens=st.integers(0, 500), length=st.integers(1, 60), count=st.integers(1, 9), stride=st.integers(1, 60))
def test_chunks_fit_or_the_error_says_how_many_tokens_would(tokens, length, count, stride):
    needed = (count - 1) * stride + length + 1
    if tokens < needed:
        with pytest.raises(TextError, match=f"{tokens} tokens.*need {needed}"):
            chunks(range(tokens), length, count, stride)
        return
    starts = chunks(range(tokens), length, count, stride)
    assert len(starts) == count and starts[0] == 0
    assert starts[-1] + length + 1 <= tokens
    assert len(set(np.diff(starts))) <= 1


@pytest.mark.parametrize("options", [{"length": 0}, {"length": 4, "count": 0}, {"length": 4, "stride": -1}])
def test_chunks_refuse_sizes_below_one(options):
    with pytest.raises(ConfigError, match="at least 1"):
        chunks(range(100), **options)


@settings(max_examples=30)
@given(width=st.integers(1, 70), tokens=st.integers(0, 150), seed=st.integers(0, 9))
def test_equal_runs_and_only_they_share_a_hash(width, tokens, seed):
    ids = np.random.default_rng(seed).integers(0, 3, tokens)
    runs = {tuple(ids[i : i + width]) for i in range(tokens - width + 1)}
    found = shingles(ids, width, 1)
    assert found.dtype == np.uint64 and len(found) == len(runs)
    assert np.all(found[1:] > found[:-1])


def test_order_of_tokens_matters():
    assert shingles([1, 2, 3, 4], 4).tolist() != shingles([4, 3, 2, 1], 4).tolist()
    assert shingles([5, 5], 2).tolist() != shingles([0, 0], 2).tolist()


def test_copied_passage_is_found_wherever_it_stands():
    generator = np.random.default_rng(0)
    train = generator.integers(0, 50_000, 10_000)
    known = shingles(train)
    fresh = generator.integers(0, 50_000, 1000)
    assert overlap(known, fresh) == 0.0
    assert overlap(known, train[:6400]) == 1.0
    for offset in (0, 1, 63, 500):
        mixed = np.concatenate([fresh[:300], train[offset : offset + 127], fresh[300:]])
        assert overlap(known, mixed) in {64 / 1127, 127 / 1127, 126 / 1127}
    assert overlap(known, train[:63]) == 0.0
    assert overlap(shingles(train[:10]), train) == 0.0


def test_overlap_of_a_long_text_takes_under_a_second():
    ids = np.random.default_rng(1).integers(0, 50_000, 300_000)
    start = time.perf_counter()
    assert overlap(shingles(ids), ids) > 0.999
    assert time.perf_counter() - start < 1.0


def test_shingle_hashes_stay_what_they_were():
    assert shingles(range(64)).tolist() == [3395451836071722716]


def test_shingle_width_below_one_is_an_error():
    with pytest.raises(ConfigError, match="width"):
        shingles([1, 2], 0)


def test_a_window_begins_with_the_start_tokens_and_keeps_its_length():
    stream = torch.arange(100, 200)
    assert window(stream, 10, 5).tolist() == [110, 111, 112, 113, 114]
    assert window(stream, 10, 5, (2,)).tolist() == [2, 110, 111, 112, 113]
