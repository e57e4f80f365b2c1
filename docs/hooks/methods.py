"""What the code says about each method: where its page is, its settings, what it needs."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from sparsight import activations, tokens, units
from sparsight.tokens import Geometry

ROOMS = {"tokens": tokens, "units": units, "activations": activations}
TITLES = {
    "tokens": "Which cached tokens to read",
    "units": "Which heads and neurons to compute",
    "activations": "Which columns of weights to read",
}
OPTIONS = {"tokens": "--select", "units": "--units", "activations": "calibrate --method"}
SECTIONS = ("Idea", "Formula", "Reference", "What it costs", "When it fails", "How to run it", "Settings", "Measured here")
DOCS = Path(__file__).parents[1]
SHIPPED = Path(tokens.__file__).parents[1] / "predictors"
_GEOMETRY = Geometry(layers=6, query_heads=6, kv_heads=2, head_dim=16, hidden_size=96, full_attention=tuple(range(6)))


def page_of(room: str, name: str) -> Path:
    """Where the page of a method is."""
    return DOCS / "methods" / room / f"{name}.md"


def overview() -> str:
    """Every method with its first sentence, what it needs and where it runs."""
    parts = ["# Methods\n", "One page for each name that the package knows. Each page says when the method fails and what was measured.\n"]
    for room, module in ROOMS.items():
        parts += [f"## {TITLES[room]}\n", f"With `{OPTIONS[room]} NAME`.\n", "| name | idea | needs | runs in |", "|---|---|---|---|"]
        for name in module.methods():
            parts.append(f"| [`{name}`]({room}/{name}.md) | {idea(room, name)} | {needs(room, name)} | {runs(room, name)} |")
        parts.append("")
    return "\n".join(parts)


def idea(room: str, name: str) -> str:
    """The first sentence of the section `Idea` of a method's page."""
    text = page_of(room, name).read_text(encoding="utf-8")
    section = re.search(r"^## Idea\n+(.*?)(?=\n\n|\n##)", text, re.M | re.S)[1]
    return re.split(r"(?<=[.])\s", " ".join(section.split()))[0]


def needs(room: str, name: str) -> str:
    """What has to be there before a method can be used."""
    cls = ROOMS[room].method(name)
    if not cls.deployable if hasattr(cls, "deployable") else False:
        return "not deployable"
    if room == "activations":
        return "calibration"
    if not cls.learned:
        return "nothing"
    shipped = (SHIPPED / f"smollm2-135m-{name}").is_dir()
    return "a predictor" + (" (ships for SmolLM2-135M)" if shipped else "")


def runs(room: str, name: str) -> str:
    """Runtimes that can do it."""
    if room == "tokens":
        cls = tokens.method(name)
        if not cls.selects:
            return "native, graph"
        native = not cls.wraps and tokens.create(name, _GEOMETRY).pieces() is not None
        return "native, graph" if native else "graph"
    if room == "units":
        return "scoring only" if not units.method(name).deployable else "native, graph"
    return "native, graph"


def settings(room: str, name: str) -> str:
    """The settings of a method with their defaults and meaning, from its config's docstring."""
    config = ROOMS[room].method(name).Config
    fields = dataclasses.fields(config)
    if not fields:
        return "None.\n"
    known = meanings(config)
    body = [f"| `{field.name}` | `{shown(field.default)}` | {known[field.name]} |" for field in fields]
    return "\n".join(["| name | default | meaning |", "|---|---|---|", *body]) + "\n"


def shown(value: object) -> str:
    """A default as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def meanings(config: type) -> dict[str, str]:
    """Type and meaning of each field from the numpydoc of a config and its bases; what they do not say is taken from the type alone."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
        place = next((i for i, line in enumerate(lines) if line == "Attributes"), None)
        names: list[str] = []
        for line in lines[place + 2 :] if place is not None else []:
            head = re.fullmatch(r"([\w, ]+) : (.*)", line)
            if head:
                names = [name.strip() for name in head[1].split(",")]
                found.update(dict.fromkeys(names, cell(head[2]) + ". "))
            elif line.strip():
                for name in names:
                    found[name] += cell(line.strip()) + " "
    return {name: text.strip() for name, text in found.items()}


def cell(text: str) -> str:
    """Text of a docstring in a table."""
    return re.sub(r"^\{(.*)\}$", lambda m: "One of " + m[1].replace('"', "`"), text).replace("|", r"\|")
