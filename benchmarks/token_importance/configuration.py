"""What a configuration file says, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from sparsight.errors import ConfigError

FOLDER = Path(__file__).parent / "configurations"


@dataclass(frozen=True)
class Configuration:
    """One table: a model, what it reads, and methods at budgets.

    Attributes
    ----------
    name : str
        Of the file, and of its result file.
    about : str
    budgets : list of str
    methods : dict of str to str
        What a method is called in tables, and how it is asked for.
    model : str
    text : str
        A file in the data folder; or
    tasks : list of str
        Long-context tasks, with `items` of each at each of `lengths`; `files` is where in the data folder the files of some are.
    length, chunks : int
    quick_chunks, quick_items : int
        In the quick form; 0 leaves the table out.
    adaptive : str or None
    artifacts : dict of str to str
        The method whose artifact a method's name stands for, if it is not the same.
    """

    name: str
    about: str
    budgets: list[str]
    methods: dict[str, str]
    model: str = "smollm2-135m"
    text: str | None = None
    tasks: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    files: str = "."
    items: int = 0
    quick_items: int = 0
    length: int = 1024
    chunks: int = 64
    quick_chunks: int = 0
    adaptive: str | None = None
    artifacts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.tasks):
            raise ConfigError(f"configuration {self.name!r} must have a text or tasks, one of the two")

    def specs(self, predictors: Path | None) -> dict[str, str]:
        """Methods as `evaluate` takes them; those with weights of a model that none ship for come from `predictors`/MODEL-NAME."""
        found = {}
        for name, spec in self.methods.items():
            folder = predictors / f"{self.model}-{spec}" if predictors is not None else None
            method = self.artifacts.get(spec, spec)
            found[name] = f"{method}={folder}" if folder is not None and folder.is_dir() else spec
        return found


def read_configurations(folder: Path = FOLDER) -> dict[str, Configuration]:
    """All configurations of a folder, by name.

    Raises
    ------
    ConfigError
        If there is none, or one cannot be read.
    """
    found = {path.stem: read_configuration(path) for path in sorted(folder.glob("*.yaml"))}
    if not found:
        raise ConfigError(f"{folder} holds no configurations; give a folder of .yaml files")
    return found


def read_configuration(path: Path) -> Configuration:
    """One configuration file."""
    try:
        given: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from None
    known = {f.name for f in fields(Configuration)} - {"name"}
    if not isinstance(given, dict) or not {"about", "budgets", "methods"} <= set(given):
        raise ConfigError(f"{path} must be a mapping with at least about, budgets and methods")
    if unknown := set(given) - known:
        raise ConfigError(f"{path} has {', '.join(sorted(unknown))}, which is none of {', '.join(sorted(known))}")
    return Configuration(path.stem, **{**given, "budgets": [str(budget) for budget in given["budgets"]]})
