"""`sparsight info`: what a predictor is, what it was made from and how good it is."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, ConfigError, SparsightError
from .console import output

if TYPE_CHECKING:
    from rich.table import Table

    from ..artifacts import Artifact

_LISTED_DOCUMENTS = 10


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "info",
        help="say what a predictor is",
        description="Check a predictor from end to end, and say what it is, what it was made from and how good it is.",
    )
    parser.add_argument(
        "artifact",
        metavar="ARTIFACT",
        help="folder of a predictor, or the name of a method that ships, such as foresight",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    found = [from_folder(folder) for folder in locate(args.artifact)]
    if args.json:
        facts = [as_json(artifact) for artifact in found]
        sys.stdout.write(json.dumps(facts[0] if len(facts) == 1 else facts, ensure_ascii=False) + "\n")
        return 0
    console = output()
    for artifact in found:
        for title, table in tables(artifact):
            console.print(title, style="bold", soft_wrap=True)
            console.print(table)
            console.print()
    return 0


def from_folder(folder: Path) -> Artifact:
    """The artifact in a folder, its weights checked against its settings.

    Raises
    ------
    ArtifactError, StorageError
    """
    from ..activations import pretrained as activations
    from ..artifacts import ACTIVATIONS, UNITS, load_artifact
    from ..tokens import pretrained as tokens
    from ..units import pretrained as units

    kind = load_artifact(folder)[0].kind
    return {UNITS: units, ACTIVATIONS: activations}.get(kind, tokens).from_pretrained(folder).artifact


def locate(name: str) -> list[Path]:
    """The folder called `name`, or else the folders of the shipped predictors of the method `name`.

    Raises
    ------
    ConfigError
        If `name` is a method without weights.
    ArtifactError
        If there is no such folder and no such method, or none of its predictors ships.
    """
    folder = Path(name).expanduser()
    if not name.strip():
        raise ArtifactError("the name of the predictor is empty; give its folder, or a method such as foresight")
    if folder.exists() or Path(name).name != name:
        return [folder]
    from ..tokens import methods
    from ..units import methods as unit_methods

    # No method with weights is called the same in both.
    known = {**unit_methods(), **methods()}
    known |= {key: cls for key, cls in unit_methods().items() if cls.learned}
    if name not in known:
        learned = ", ".join(method for method, cls in known.items() if cls.learned)
        raise ArtifactError(
            f"no predictor at '{name}'; expected a folder that 'sparsight train' wrote, or one of {learned}"
        )
    if not known[name].learned:
        option = "--select" if name in methods() else "--units"
        raise ConfigError(f"method {name!r} has no weights, so there is nothing to show; use it with {option} {name}")
    shipped = [path for path, method in _shipped() if method == name]
    if not shipped:
        raise ArtifactError(
            f"no predictor of {name!r} ships with this version; train one: sparsight train --method {name} --out DIR"
        )
    return shipped


def _shipped() -> Iterable[tuple[Path, str]]:
    """Folder and method of each shipped predictor."""
    for config in sorted(Path(str(files("sparsight") / "predictors")).glob("*/config.json")):
        try:
            yield config.parent, from_folder(config.parent).method
        except SparsightError:
            continue


def as_json(artifact: Artifact) -> dict[str, Any]:
    """All that is stored of an artifact, and where it is."""
    return {**dataclasses.asdict(artifact), "folder": str(artifact.folder), "parameters_fraction": _fraction(artifact)}


def tables(artifact: Artifact) -> list[tuple[str, Table]]:
    """What is known of an artifact: titles, and `rich` tables below them."""
    a, fraction = artifact, _fraction(artifact)
    identity = {
        "folder": a.folder,
        "model": f"{a.model_name}, {a.model_parameters:,} parameters" if a.model_parameters else a.model_name,
        "model hash": a.model_fingerprint,
        "parameters": f"{a.parameters:,}" + ("" if fraction is None else f", {fraction:.2%} of the model's"),
        "SHA-256 of the weights": a.sha256,
        "made with": a.versions,
    }
    training = {key: value for key, value in a.training.items() if key != "history"}
    data = {key: _some(value) if isinstance(value, list) else value for key, value in a.data.items()}
    from ..artifacts import KIND

    parts = {
        f"Predictor of {a.method} for {a.model_name}": identity,
        "Settings": a.settings,
        "Training": training,
        "Data": data,
    }
    shown = [(title, _facts(facts)) for title, facts in parts.items() if facts]
    if a.recall:
        what = "Share of attention mass kept" if a.kind == KIND else "Rank correlation with the true importance"
        shown.append((f"{what}, on held-out text", _grid(a.recall)))
    return shown


def _facts(facts: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 0, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(Text(str(key)), Text(_text(value)))
    return table


def _grid(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 0, 0, 2))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(Text(str(column)), justify="right")
    for row in rows:
        table.add_row(*(Text(_text(row[key]) if key in row else "") for key in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)


def _some(documents: Any) -> str:
    if not isinstance(documents, list):
        return _text(documents)
    names = [str(d.get("name", d)) if isinstance(d, dict) else str(d) for d in documents[:_LISTED_DOCUMENTS]]
    rest = len(documents) - len(names)
    return f"{len(documents):,}: " + ", ".join(names) + (f" and {rest:,} more" if rest else "")


def _fraction(artifact: Artifact) -> float | None:
    return artifact.parameters / artifact.model_parameters if artifact.model_parameters else None
