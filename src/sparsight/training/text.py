"""What text is, for training and evaluation alike: documents, their tokens, and what two texts have in common.

Reading comes first (`read_documents`), then the parting of documents into those trained on and those held out
(`split_held_out`), the stream of tokens (`token_stream`) and the windows cut from it (`chunks`). `shingles` and
`overlap` find evaluation text that was already used for training.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.errors import ConfigError, StorageError, TextError
from sparsight.training.shingles import overlap, shingles

SUFFIXES = (".txt", ".md")
PROVENANCE_NOTES = ("SOURCE.md", "ATTRIBUTION.md")

__all__ = [
    "Document",
    "hash_documents",
    "overlap",
    "read_documents",
    "shingles",
    "split_held_out",
    "token_stream",
]

_ARTICLE_HEADING = re.compile(r" = ([^=\s].*) = ")


@dataclass(frozen=True)
class Document:
    """A text with a name by which reports can point at it.

    Attributes
    ----------
    name : str
        Where the text came from, such as ``notes.txt`` or ``test.raw.txt#Robert Boulter``.
    text : str
        The text itself, with ``\\n`` line ends.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text in UTF-8, as 64 hexadecimal digits; the name has no part in it."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def read_documents(paths: Sequence[str | Path] | str | Path) -> list[Document]:
    """Read text files and folders of them into documents, one per file, or one per article of a WikiText file.

    Parameters
    ----------
    paths : sequence of str or Path
        Files of any ending, and folders, which are searched to any depth for ``*.txt`` and ``*.md`` in sorted order.
        Notes on provenance (``SOURCE.md``, ``ATTRIBUTION.md``) in a folder are not text and are passed over.

    Returns
    -------
    list of Document
        In the order of `paths`. A file that holds WikiText articles gives one document per article, ``file#Title``.

    Raises
    ------
    TextError
        If a path is missing, a folder holds no text, a file is empty, or its bytes are not UTF-8.
    StorageError
        If a file cannot be read.
    """
    documents: list[Document] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for file, name in _text_files(Path(path)):
            documents += _split_articles(name, _read_text(file))
    if not documents:
        raise TextError("expected at least one text file or folder, got none; name one")
    return documents


def _text_files(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield ``(file, name)`` for a file, or for every text file in a folder."""
    if not path.exists():
        raise TextError(f"{path}: no such file or folder; expected text in UTF-8, check the path")
    if not path.is_dir():
        yield path, path.name
        return
    files = sorted(
        (file.relative_to(path).as_posix(), file)
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.name not in PROVENANCE_NOTES and file.is_file()
    )
    if not files:
        raise TextError(f"{path}: the folder holds no {' or '.join('*' + s for s in SUFFIXES)} file; put text there")
    yield from ((file, name) for name, file in files)


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path}: not UTF-8, byte 0x{error.object[error.start]:02x} at offset {error.start}; save it as UTF-8"
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise TextError(f"{path}: the file is {'empty' if not text else 'only white space'}; expected text")
    return text


def _split_articles(name: str, text: str) -> Iterator[Document]:
    """Yield one document per WikiText article, or the whole text where there are no article headings."""
    lines = text.split("\n")

    def blank(index: int) -> bool:
        return not 0 <= index < len(lines) or not lines[index].strip()

    # Formulas in prose look like headings (" = 1 rad / s and ... k = "), but headings stand alone.
    starts = [
        (index, match[1].strip())
        for index, line in enumerate(lines)
        if (match := _ARTICLE_HEADING.fullmatch(line.rstrip() + " ")) and blank(index - 1) and blank(index + 1)
    ]
    if not starts:
        yield Document(name, text)
        return
    before = "\n".join(lines[: starts[0][0]])
    if before.strip():
        yield Document(name, before)
    ends = [index for index, _ in starts[1:]] + [len(lines)]
    for (start, title), end in zip(starts, ends, strict=True):
        yield Document(f"{name}#{title}", "\n".join(lines[start:end]))


def hash_documents(documents: Iterable[Document]) -> str:
    """Return a hash of the texts in their order, as 64 hexadecimal digits; names have no part in it."""
    return hashlib.sha256("\n".join(document.sha256 for document in documents).encode("ascii")).hexdigest()


def split_held_out(documents: Sequence[Document], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Part documents into those to train on and those held out, the same way for the same seed.

    Documents are shuffled and held out while they fit into `fraction` of all characters, but at least one is. Equal
    texts stay on one side. A single text is parted at the paragraph boundary nearest to the fraction, its end held out.

    Parameters
    ----------
    documents : sequence of Document
    fraction : float
        Share of the characters to hold out, above 0 and below 1.
    seed : int
        Seed of the shuffle.

    Returns
    -------
    (train, held) : two lists of Document
        Neither is empty; each keeps the order of `documents`.

    Raises
    ------
    ConfigError
        If `fraction` is out of range.
    TextError
        If there are no documents, or a single one has no boundary to part it at.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"held-out fraction: expected a number above 0 and below 1, got {fraction}")
    sizes = {document.sha256: len(document.text) for document in documents}
    if not sizes:
        raise TextError("expected documents to part into training and held-out text, got none")
    if len(sizes) == 1:
        train, held = _split_text(documents[0], fraction)
        return [train], [held]
    hashes = sorted(sizes)
    room = fraction * sum(sizes.values())
    chosen: set[str] = set()
    for index in np.random.default_rng(seed).permutation(len(hashes)):
        if sizes[hashes[index]] <= room and len(chosen) < len(hashes) - 1:
            chosen.add(hashes[index])
            room -= sizes[hashes[index]]
    chosen = chosen or {min(hashes, key=lambda key: (sizes[key], key))}
    held_out = [document for document in documents if document.sha256 in chosen]
    return [document for document in documents if document.sha256 not in chosen], held_out


def _split_text(document: Document, fraction: float) -> tuple[Document, Document]:
    text = document.text
    target = (1.0 - fraction) * len(text)
    tolerance = 0.5 * min(fraction, 1.0 - fraction) * len(text)
    for boundary in (r"\n[ \t]*\n\s*", r"\n", r"\s"):
        cuts = [match.end() for match in re.finditer(boundary, text)]
        cut = min(cuts, key=lambda cut: abs(cut - target), default=0)
        if abs(cut - target) <= tolerance and text[:cut].strip() and text[cut:].strip():
            share = f"{100 * cut / len(text):.0f}%"
            return Document(f"{document.name}[:{share}]", text[:cut]), Document(
                f"{document.name}[{share}:]", text[cut:]
            )
    raise TextError(
        f"{document.name}: no white space near {100 * (1.0 - fraction):.0f}% of its {len(text)} characters to part "
        "it at; give a longer text or a second document"
    )


def token_stream(
    documents: Sequence[Document], tokenizer: Any, eos_id: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise documents into one stream, without the special tokens a tokenizer adds by itself.

    Parameters
    ----------
    documents : sequence of Document
    tokenizer : transformers tokenizer
        Called as ``tokenizer(text, add_special_tokens=False)``.
    eos_id : int, optional
        Token to put between documents; it counts as the last of the document before it.

    Returns
    -------
    ids : numpy.ndarray, ``(tokens,)``, int64
    document_of : numpy.ndarray, ``(tokens,)``, int32
        Index in `documents` of the document that a token belongs to.

    Raises
    ------
    TextError
        If there are no documents, or a document gives no token.
    """
    pieces: list[np.ndarray] = []
    for index, document in enumerate(documents):
        # Not verbose: a text longer than the model's context is meant, and warning of it would be noise.
        ids = list(tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids:
            raise TextError(f"{document.name}: the tokenizer found no token in its {len(document.text)} characters")
        if eos_id is not None and index + 1 < len(documents):
            ids.append(eos_id)
        pieces.append(np.asarray(ids, dtype=np.int64))
    if not pieces:
        raise TextError("expected documents to tokenise, got none")
    lengths = [len(piece) for piece in pieces]
    return np.concatenate(pieces), np.repeat(np.arange(len(pieces), dtype=np.int32), lengths)
