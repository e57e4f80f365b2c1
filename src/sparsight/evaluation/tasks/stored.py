"""Tasks whose texts come from files: pairs of keys and values (Liu et al. 2023, arXiv:2307.03172) and the last word of a passage (LAMBADA,
Paperno et al. 2016, arXiv:1606.06031). The files are the user's; nothing is fetched.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ...artifacts import read_bytes
from ...errors import TextError
from .filling import Wanted, even_depth, fill
from .multiple_choice_rows import Check, Row, checked_row, read_lines, text_field
from .prompted import Prompted


def _pairs(value: Any, row: Row) -> str | None:
    good = isinstance(value, list) and value and all(
        isinstance(pair, list) and len(pair) == 2 and all(text_field(text, row) is None for text in pair) for pair in value
    )
    return None if good else "a list of pairs of texts"


def _known_key(value: Any, row: Row) -> str | None:
    return None if any(key == value for key, _ in row["ordered_kv_records"]) else "one of the keys of ordered_kv_records"


def _its_value(value: Any, row: Row) -> str | None:
    return None if dict(map(tuple, row["ordered_kv_records"]))[row["key"]] == value else "the value of the key in ordered_kv_records"


PAIR_FIELDS: dict[str, Check] = {"ordered_kv_records": _pairs, "key": _known_key, "value": _its_value}
PASSAGE_FIELDS: dict[str, Check] = {"context": text_field, "continuation": text_field}
"""Fields that items are made of, with what is expected of each, in the order in which they are checked."""

FILES = {
    "key-value": ("kv_retrieval", "kv-retrieval-75_keys.jsonl.gz", PAIR_FIELDS),
    "lambada": ("lambada", "lambada_openai.jsonl", PASSAGE_FIELDS),
}
"""Folder and name that a task's file has inside the folder of data, and the fields of its rows."""


def key_value(wanted: Wanted) -> list[Prompted]:
    """As many pairs of a record as fit, and one key whose value has to be written; where a record has too few, those of the next ones follow.

    Raises
    ------
    TextError
        If the file is missing, holds too few records, or a row is not as it should be.
    StorageError
        If it cannot be read.
    """
    rows = _rows("key-value", wanted)
    return [_record(rows, i, wanted) for i in range(wanted.count)]


def _record(rows: list[Row], i: int, wanted: Wanted) -> Prompted:
    key, value = rows[i]["key"], rows[i]["value"]
    depth = even_depth(i, wanted.seed)
    pool = [pair for row in (*rows[i:], *rows[:i]) for pair in row["ordered_kv_records"] if pair[0] != key]

    def build(pieces: int) -> Prompted:
        pairs = pool[:pieces]
        pairs.insert(round(depth * len(pairs)), [key, value])
        listed = ",\n".join(f'"{k}": "{v}"' for k, v in pairs)
        return Prompted(
            "key-value", f"{{{listed}}}\n\n", f'The value of the key "{key}" is "', (value,),
            length=wanted.length, depth=depth, seed=wanted.seed, joints=("",),
        )  # fmt: skip

    return fill(build, wanted, most=len(pool), least=1)


def lambada(wanted: Wanted) -> list[Prompted]:
    """Passages whose last word has to be written. They have a length of their own, whatever is asked for.

    Raises
    ------
    TextError, StorageError
        As `key_value`.
    """
    rows = _rows("lambada", wanted)
    return [
        Prompted("lambada", row["context"].rstrip(), "", (row["continuation"].strip(),), seed=wanted.seed) for row in rows[: wanted.count]
    ]


def _rows(task: str, wanted: Wanted) -> list[Row]:
    """The file's rows, in an order that the seed gives."""
    path, fields = _find(task, wanted.data), FILES[task][2]
    rows = [checked_row(line, f"{path} line {n}", fields) for n, line in enumerate(read_lines(path, read_bytes(path)), start=1)]
    if len(rows) < wanted.count:
        raise TextError(f"{path} holds {len(rows)} rows, and {wanted.count} items were asked for; ask for fewer")
    return random.Random(f"{task} {wanted.seed}").sample(rows, len(rows))


def _find(task: str, data: Path | None) -> Path:
    folder, name, _ = FILES[task]
    if data is None:
        raise TextError(f"{task} needs the file {folder}/{name}; give the folder that holds it as --tasks-data, or leave {task} out")
    if data.is_file():
        return data
    for path in (data / folder / name, data / name):
        # Unpacked ones serve as well.
        for found in (path, path.with_suffix("") if path.suffix == ".gz" else path):
            if found.exists():
                return found
    raise TextError(f"{data} has no {folder}/{name} or {name}; put the file there, give another --tasks-data, or leave {task} out")
