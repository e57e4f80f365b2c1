"""The reference of the command line, from the parsers themselves."""

from __future__ import annotations

import argparse
import re

from sparsight.cli.main import build_parser

HEAD = """# Command line

Made from the parsers of this version. `sparsight VERB --help` prints the same.

Exit codes: 0, done; 2, something you can mend, said in one line on standard error; 130, interrupted; 141, the reader of a pipe has gone;
1, a fault of the program (`SPARSIGHT_DEBUG=1` shows where).
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for verb, (parser, help_text) in verbs().items():
        parts.append(section(verb, parser, help_text))
    return "\n".join(parts)


def verbs() -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Parser and short help of each verb."""
    (group,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    short = {choice.dest: choice.help for choice in group._choices_actions}
    return {verb: (parser, short.get(verb, "")) for verb, parser in group.choices.items()}


def section(verb: str, parser: argparse.ArgumentParser, help_text: str, level: int = 2) -> str:
    """Description, arguments and options of one verb, and of the verbs below it."""
    parts = [f"{'#' * level} {verb}\n", _sentence(help_text), escaped(" ".join((parser.description or "").split()))]
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    rows = [row(parser, action) for action in parser._actions if action.dest != "help" and action not in nested]
    if rows:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    if parser.epilog:
        parts.append(f"```text\n{parser.epilog.strip()}\n```")
    for action in nested:
        short = {choice.dest: choice.help for choice in action._choices_actions}
        parts += [section(f"{verb} {name}", below, short.get(name, ""), level + 1) for name, below in action.choices.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One argument or option."""
    formatter = parser._get_formatter()
    value = "" if action.nargs == 0 else " " + formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    name = ", ".join(action.option_strings) + value if action.option_strings else formatter._format_args(action, action.dest)
    meaning = formatter._expand_help(action) if action.help else ""
    needed = ". **Required.**" if action.required and action.option_strings else ""
    return f"| `{escaped(name, code=True)}` | {escaped(meaning)}{needed} |"


def escaped(text: str, code: bool = False) -> str:
    """Text that Markdown leaves as it is, also in a table."""
    text = text.replace("|", r"\|")
    return text if code else re.sub(r"([<>*_\[\]])", r"\\\1", text)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith((".", "?")) else ".")
