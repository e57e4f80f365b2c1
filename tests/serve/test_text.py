"""Text piece by piece is text at once; stop sequences are found wherever the pieces are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsight.serve.text import StopScanner, TextPieces, TokenBytes


@pytest.fixture(scope="module")
def bytes_tokenizer():
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<eos>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def pieces_of(tokenizer, ids):
    found = TextPieces(tokenizer)
    return [found.push(token) for token in ids] + [found.end()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 256), max_size=160))
def test_any_bytes_give_the_text_that_decoding_at_once_gives(bytes_tokenizer, ids):
    assert "".join(pieces_of(bytes_tokenizer, ids)) == bytes_tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 511), max_size=160))
def test_tokens_with_marked_spaces_too(stories, ids):
    assert "".join(pieces_of(stories.tokenizer, ids)) == stories.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_whole(bytes_tokenizer):
    ids = bytes_tokenizer("aß€😀b")["input_ids"]
    assert len(ids) == 11
    assert pieces_of(bytes_tokenizer, ids) == ["a", "", "ß", "", "", "€", "", "", "", "😀", "b", ""]


def test_a_long_answer_decodes_a_window_only(bytes_tokenizer, monkeypatch):
    found, lengths = TextPieces(bytes_tokenizer), []
    usual = found._decode
    monkeypatch.setattr(found, "_decode", lambda start: (lengths.append(len(found._ids) - start), usual(start))[1])
    for token in bytes_tokenizer("long text " * 100)["input_ids"]:
        found.push(token)
    assert len(lengths) > 1000 and max(lengths) <= 64


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stops_are_found_across_pieces(pieces, stops):
    scanner, given_out, whole = StopScanner(stops), "", ""
    for piece in pieces:
        whole += piece
        given_out += scanner.feed(piece)
        first = min((at for stop in stops if (at := whole.find(stop)) >= 0), default=None)
        assert whole.startswith(given_out) and scanner.stopped == (first is not None)
        if scanner.stopped:
            assert given_out == whole[:first]
            return
        assert all(len(whole) - len(given_out) < len(stop) for stop in stops) or len(stops) > 1
    assert given_out + scanner.end() == whole


def test_what_cannot_be_the_beginning_of_a_stop_is_given_out():
    scanner = StopScanner(["\n\nUser:"])
    assert [scanner.feed(piece) for piece in ("one\n", "two\n", "\nUs", "ed", "\n\nUser", ": x")] == ["one", "\ntwo", "", "\n\nUsed", "", ""]
    assert scanner.stopped


def test_bytes_of_tokens(bytes_tokenizer, stories):
    of_bytes, of_stories = TokenBytes(bytes_tokenizer), TokenBytes(stories.tokenizer)
    ids = bytes_tokenizer("a ß\n€")["input_ids"]
    assert b"".join(of_bytes[i] for i in ids) == "a ß\n€".encode() and "".join(of_bytes.texts(ids)) == "a ß\n€"
    assert of_bytes[256] == b"<eos>" and of_stories[1] == b"<s>"
    ids = stories.tokenizer("Once there was ß\x01", add_special_tokens=False)["input_ids"]
    assert b"".join(of_stories[i] for i in ids) == " Once there was ß\x01".encode()
    assert of_bytes.text(bytes_tokenizer("ß")["input_ids"][0]) == "\ufffd"
