"""Text of an answer as its tokens come: no half characters, and nothing that a stop sequence might still take back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

_WINDOW = 48
_KEPT = 16
_HALF = "\ufffd"


class TextPieces:
    """Decodes the tokens of an answer one by one; the pieces, joined, are what decoding all at once gives.

    Only the last tokens are decoded anew with each one, so that a long answer costs as much a token as a short one.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    """

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self._skipped = set(tokenizer.all_special_ids)
        self._in_bytes = False
        self._ids: list[int] = []
        self._start = 0  # of the tokens that are still decoded
        self._text = ""  # of those
        self._given = 0  # characters of it
        self._all: list[str] = []

    def push(self, token: int) -> str:
        """The text that is certain with one token more: without characters that may still lack bytes."""
        self._ids.append(token)
        self._text = self._decode(self._start)
        if token not in self._skipped:
            self._in_bytes = _is_byte(self._tokenizer.convert_ids_to_tokens(token))
        if self._in_bytes:
            # A run of such tokens is text if all of it is, else a replacement character a byte: the next one decides.
            return ""
        piece = self._text[self._given :].rstrip(_HALF)
        self._given += len(piece)
        if len(self._ids) - self._start > _WINDOW:
            self._move()
        self._all.append(piece)
        return piece

    def end(self) -> str:
        """What is left, half characters among it."""
        whole, given = self._decode(0), "".join(self._all)
        return whole[len(given) :] if whole.startswith(given) else self._text[self._given :]

    def _move(self) -> None:
        start = len(self._ids) - _KEPT
        text, pending = self._decode(start), len(self._text) - self._given
        # A tokenizer may write a text's first token differently; where it does, the window stays as it is and is tried again.
        if self._text.endswith(text) and pending <= len(text):
            self._start, self._text, self._given = start, text, len(text) - pending

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._ids[start:], skip_special_tokens=True)


class StopScanner:
    """Ends a text before the first of some stop sequences, wherever the pieces are cut.

    Parameters
    ----------
    stops : sequence of str
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """What may be given out; once `stopped`, the text is over."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back in case a stop sequence was beginning."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class TokenBytes:
    """The bytes that a token stands for: what a text is made of, where a character may take several tokens.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    """

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        decoder = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))
        self._byte_of = _byte_level() if "ByteLevel" in decoder else None

    def __getitem__(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        written = self._tokenizer.convert_ids_to_tokens(token)
        if written is None:
            return b""
        if self._byte_of is not None and all(c in self._byte_of for c in written):
            return bytes(self._byte_of[c] for c in written)
        if _is_byte(written):
            return bytes([int(written[3:5], 16)])
        return written.replace("\u2581", " ").encode()

    def text(self, token: int) -> str:
        """One token as text; bytes of half a character as replacement characters."""
        return self[token].decode("utf-8", errors="replace")

    def texts(self, tokens: Iterable[int]) -> list[str]:
        """Tokens as pieces of one text: a character of several tokens stands at the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self[token]) for token in tokens]


def _is_byte(written: str | None) -> bool:
    """Whether a token is how a vocabulary of words falls back on a byte: `<0x0A>`."""
    return written is not None and len(written) == 6 and written.startswith("<0x") and written.endswith(">")


def _byte_level() -> dict[str, int]:
    """The printable stand-ins for bytes in byte-level vocabularies (GPT-2's): what is printable in Latin-1 is itself, the rest follows 255."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
