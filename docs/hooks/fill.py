"""Tables that pages ask for: `<!-- made: NAME ARGUMENT ... -->`, from result files and from the code."""

from __future__ import annotations

import re

from docs.hooks import measured, methods

MADE = {
    "settings": methods.settings,
    "loss": measured.loss,
    "elsewhere": measured.elsewhere,
    "tasks": measured.tasks,
    "speed": measured.speed,
    "bytes": measured.context_bytes,
    "neurons": measured.neurons,
    "heads": measured.heads,
    "unit-speed": measured.unit_speed,
    "activations": measured.activations,
    "activation-speed": measured.activation_speed,
}
MARK = re.compile(r"^<!-- made: (.*?) -->$", re.M)


def filled(markdown: str) -> str:
    """A page with its tables.

    Raises
    ------
    KeyError, ValueError
        If a mark asks for something there is not.
    """
    lines = MARK.sub(lambda mark: table(mark[1]), markdown).splitlines()
    return "\n".join(unbroken(line) if line.startswith("|") else line for line in lines)


def unbroken(row: str) -> str:
    """A row of a table whose figures stay on one line with their intervals."""
    return re.sub(r" ?± ?| (?=×)", lambda gap: gap[0].replace(" ", "\u00a0"), row)


def table(request: str) -> str:
    """What one mark asks for."""
    name, *arguments = re.findall(r'"([^"]*)"|(\S+)', request)
    name, arguments = name[1], [quoted or plain for quoted, plain in arguments]
    if name not in MADE:
        raise ValueError(f"no table is called {name!r}; there are {', '.join(MADE)}")
    return MADE[name](*arguments).strip()
