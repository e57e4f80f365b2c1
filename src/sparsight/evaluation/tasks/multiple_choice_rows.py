"""Rows of multiple-choice tasks from local files, in the field names of the hub's datasets, checked one by one.

Rows count from 0. Even rows are for tracing, training and few-shot examples, odd rows are reported: a predictor that was trained on the
even rows of a file is measured on other rows. Other rows are not always other texts: winogrande comes in twins that differ in a word or
two, and of its validation split 275 of the 633 odd rows share 70 % of their words with an even one.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts import read_bytes, sha256_bytes
from ...errors import ConfigError, TextError

Row = dict[str, Any]
Check = Callable[[Any, Row], str | None]
"""What is expected of a field's value, given its row; None if it is so."""


@dataclass(frozen=True)
class LocalRows:
    """What a task's file holds.

    Attributes
    ----------
    examples : list of dict
        Even rows: for tracing, training and few-shot examples.
    reported : list of dict
        Odd rows: the items of every reported number.
    sha256 : str
        Of the file.
    """

    examples: list[Row]
    reported: list[Row]
    sha256: str


def _is_text(value: Any) -> bool:
    # JSON can escape half a surrogate pair, which no tokenizer takes.
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def text_field(value: Any, row: Row) -> str | None:
    return None if _is_text(value) and value.strip() else "text"


def _text_or_empty(value: Any, row: Row) -> str | None:
    return None if _is_text(value) else "text, or an empty string"


def _blank(value: Any, row: Row) -> str | None:
    return None if _is_text(value) and "_" in value else "text with a _ where an option belongs"


def _texts(value: Any, row: Row) -> str | None:
    good = isinstance(value, list) and len(value) >= 2 and all(text_field(v, row) is None for v in value)
    return None if good else "a list of two texts or more"


def _labelled(value: Any, row: Row) -> str | None:
    good = isinstance(value, dict) and all(
        key in value and _texts(value[key], row) is None for key in ("text", "label")
    )
    return (
        None
        if good and len(value["text"]) == len(value["label"])
        else '{"text": [...], "label": [...]} of equal lengths'
    )


def _one_of(*allowed: Any) -> Check:
    def check(value: Any, row: Row) -> str | None:
        # In Python 1 == True and 0.0 == 0, but a column of the harness holds one type.
        same = any(type(value) is type(a) and value == a for a in allowed)
        return None if same else f"one of {', '.join(json.dumps(a) for a in allowed)}"

    return check


def _answer_key(value: Any, row: Row) -> str | None:
    return _one_of(*row["choices"]["label"])(value, row)


def _ending(value: Any, row: Row) -> str | None:
    return _one_of(*map(str, range(len(row["endings"]))))(value, row)


_BINARY = _one_of(0, 1)

FIELDS: dict[str, dict[str, Check]] = {
    "piqa": {"goal": text_field, "sol1": text_field, "sol2": text_field, "label": _BINARY},
    "copa": {
        "premise": text_field,
        "choice1": text_field,
        "choice2": text_field,
        "question": _one_of("cause", "effect"),
        "label": _BINARY,
    },
    "openbookqa": {"question_stem": text_field, "choices": _labelled, "answerKey": _answer_key},
    "winogrande": {"sentence": _blank, "option1": text_field, "option2": text_field, "answer": _one_of("1", "2")},
    "rte": {"sentence1": text_field, "sentence2": text_field, "label": _BINARY},
    "hellaswag": {
        "activity_label": text_field,
        "ctx_a": text_field,
        "ctx_b": _text_or_empty,
        "endings": _texts,
        "label": _ending,
    },
    "arc_easy": {"question": text_field, "choices": _labelled, "answerKey": _answer_key},
}
"""Fields that a task's prompts are made of, with what is expected of each, in the order in which they are checked."""


def read_rows(folder: str | Path, task: str) -> LocalRows:
    """Read `<task>.jsonl`, or `<task>.jsonl.gz` where there is none.

    Parameters
    ----------
    folder : path
    task : str
        Of `FIELDS`.

    Raises
    ------
    ConfigError
        If there is no such task.
    TextError
        If the file is missing, is no gzip, or a row is not what the task needs; the message names file and line.
    StorageError
        If it cannot be read.
    """
    if task not in FIELDS:
        raise ConfigError(f"no task {task!r}; choose from {', '.join(FIELDS)}")
    path = _find(Path(folder), task)
    data = read_bytes(path)
    rows = [checked_row(line, f"{path} line {n}", FIELDS[task]) for n, line in enumerate(read_lines(path, data), start=1)]
    if len(rows) < 2:
        raise TextError(
            f"{path} holds {len(rows)} rows, 2 or more are needed: even rows give examples, odd rows are reported"
        )
    return LocalRows(rows[0::2], rows[1::2], sha256_bytes(data))


def _find(folder: Path, task: str) -> Path:
    if not folder.is_dir():
        raise TextError(f"{folder} is not a folder; give one with files such as {task}.jsonl as --tasks-data")
    for path in (folder / f"{task}.jsonl", folder / f"{task}.jsonl.gz"):
        if path.exists():
            return path
    raise TextError(
        f"{folder} has no {task}.jsonl or {task}.jsonl.gz; put the file there or leave {task} out of the tasks"
    )


def read_lines(path: Path, data: bytes) -> Sequence[str]:
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise TextError(f"{path} is not a whole gzip file; fetch it again, or unpack it to {path.stem}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextError(f"{path} line {line} is not UTF-8; save the file as UTF-8") from None
    # Not splitlines: JSON strings may hold other line separators, such as U+2028.
    return text.removesuffix("\n").split("\n") if text else []


def checked_row(line: str, where: str, fields: dict[str, Check]) -> Row:
    """A row's fields; what else is in the line is dropped, as its types need not agree from row to row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise TextError(f"{where} is not a JSON object; a row is one object with {', '.join(fields)}")
    if missing := [field for field in fields if field not in row]:
        raise TextError(f"{where} has no {', '.join(missing)}; a row needs {', '.join(fields)}")
    for field, check in fields.items():
        if (expected := check(row[field], row)) is not None:
            raise TextError(
                f"{where}: {field} should be {expected}, got {json.dumps(row[field])[:60]}; mend or drop the row"
            )
    return {field: row[field] for field in fields}
