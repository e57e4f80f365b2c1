"""The training text that ships with the package: Wikipedia articles and topics of Python's manual, xz-compressed JSON lines."""

from __future__ import annotations

import json
import lzma
from importlib.resources import files

from .text import Document

LICENCE = (
    "Wikipedia articles CC BY-SA 3.0, topics of the Python manual PSF-2.0 (training/data/SOURCE.md names them all)"
)


def shipped_documents() -> list[Document]:
    """The documents, in the order of their names; `recipes/wikipedia_text.py` and `recipes/pack_text.py` make them again."""
    packed = (files("sparsight") / "training" / "data" / "text.jsonl.xz").read_bytes()
    lines = lzma.decompress(packed).decode("utf-8").splitlines()
    return [Document(**json.loads(line)) for line in lines]
