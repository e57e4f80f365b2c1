"""Tables as they go into a paper or a program: LaTeX, Markdown, CSV and tab-separated."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from .columns import Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\N{MINUS SIGN}": "$-$", "±": r"$\pm$",
    "Δ": r"$\Delta$",    "–": "--", "—": "---", "’": "'", "●": r"$\bullet$", "…": r"\ldots{}", "×": r"$\times$", '"': "''",
}  # fmt: skip
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def latex(table: Table) -> str:
    """A `tabular` with the rules of booktabs."""
    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row(table.head),
        r"\midrule",
        *map(_row, table.body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(_MARKDOWN.sub(r"\\\1", _line(cell)) for cell in cells) + " |"

    rule = "| " + " | ".join("---:" if numeric else ":---" for numeric in table.numeric) + " |"
    return "\n".join([row(table.head), rule, *map(row, table.body)]) + "\n"


def separated(table: Table, separator: str = ",") -> str:
    """Numbers as they are, for a spreadsheet or a program; nothing in them is taken for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerow(table.raw_head)
    writer.writerows([_raw(value) for value in row] for row in table.raw_body)
    return out.getvalue()


def copies(table: Table) -> dict[str, str]:
    """All of them, by what a button is called."""
    return {"LaTeX": latex(table), "Markdown": markdown(table), "CSV": separated(table), "TSV": separated(table, "\t")}


def _row(cells: list[str]) -> str:
    return " & ".join("".join(_LATEX.get(c, c) for c in _line(cell)) for cell in cells) + r" \\"


def _line(text: str) -> str:
    return " ".join(text.split())


def _raw(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        text = _line(value)
        return "'" + text if text.startswith(_FORMULA) else text
    return repr(value)
