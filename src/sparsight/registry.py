"""Methods by name: one file each in a package, found by being there, with settings that are checked."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from .errors import ConfigError

M = TypeVar("M")
"""What the methods of a registry have in common."""

One = TypeVar("One")


class Registry(Generic[M]):
    """The methods of one package.

    A method is a class with a frozen config dataclass `Config`, made known by `register`; its `name` is set by that.

    Parameters
    ----------
    package : str
        Its modules are all imported before methods are looked up, and so are the entry points of that group which other packages bring.
    option : str
        How a method is asked for on the command line, for messages.
    """

    def __init__(self, package: str, option: str) -> None:
        self.package, self.option = package, option
        self._methods: dict[str, type[M]] = {}
        self._brought = False

    def register(self, name: str) -> Callable[[type[One]], type[One]]:
        """Class decorator: make a method known under `name`."""

        def add(cls: Any) -> Any:
            if name in self._methods:
                raise ConfigError(f"two methods are registered as {name!r}")
            cls.name = name
            self._methods[name] = cls
            return cls

        return add

    def methods(self) -> dict[str, type[M]]:
        """All methods by name; every module of the package is imported to find them.

        Raises
        ------
        ConfigError
            If a plug-in cannot be loaded.
        """
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        if not self._brought:
            self._load_plug_ins()
            self._brought = True
        return dict(sorted(self._methods.items()))

    def _load_plug_ins(self) -> None:
        for entry in entry_points(group=self.package):
            try:
                entry.load()
            except Exception as error:  # code of others may raise anything
                source = entry.dist.name if entry.dist else "an unknown package"
                raise ConfigError(
                    f"the plug-in {entry.name!r} of {source} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}; "
                    f"mend it, or run: pip uninstall {source}"
                ) from error

    def method(self, name: str) -> type[M]:
        """The method called `name`.

        Raises
        ------
        ConfigError
            If there is none; the message lists those that exist.
        """
        known = self.methods()
        if name not in known:
            raise ConfigError(f"unknown method {name!r}; choose one of {', '.join(known)}")
        return known[name]

    def make_config(self, name: str, settings: dict[str, Any]) -> Any:
        """A method's config from a mapping; unknown keys and values of the wrong kind are errors.

        Raises
        ------
        ConfigError
        """
        method: Any = self.method(name)
        config_class = method.Config
        fields = {f.name: f for f in dataclasses.fields(config_class)}
        for key, value in settings.items():
            if key not in fields:
                known = ", ".join(fields) or "none"
                raise ConfigError(
                    f"unknown setting {key!r} of method {name!r} (it has: {known}); written by a newer version? upgrade sparsight"
                )
            default = fields[key].default
            if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
                raise ConfigError(f"setting {key!r} of method {name!r} must be a {type(default).__name__}, got {value!r}")
        return config_class(**settings)

    def typed_settings(self, name: str, pairs: Sequence[str]) -> dict[str, Any]:
        """Settings of a method from `key=value` texts, each of the type of its field's default.

        Unknown keys are left for `make_config` to name.

        Raises
        ------
        ConfigError
            If a text is not `key=value`, or a value cannot be read.
        """
        method: Any = self.method(name)
        defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(method.Config)}
        typed: dict[str, Any] = {}
        for pair in pairs:
            key, _, text = (part.strip() for part in pair.partition("="))
            if not key or not text:
                raise ConfigError(f"cannot read {pair!r} as a setting of {name!r}; write key=value")
            kind = type(defaults.get(key, text))
            try:
                typed[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
            except (ValueError, KeyError):
                raise ConfigError(f"setting {key!r} of method {name!r} must be a {kind.__name__}, got {text!r}") from None
        return typed

    def parse(self, spec: str) -> tuple[str, list[str], str | None]:
        """Name, settings and folder of `NAME`, `NAME=FOLDER` or `NAME:key=value,...`.

        Raises
        ------
        ConfigError
            If nothing stands behind the equals sign.
        """
        if ":" in spec.partition("=")[0]:
            name, _, rest = spec.partition(":")
            return name.strip(), rest.split(","), None
        name, equals, folder = spec.partition("=")
        if equals and not folder.strip():
            raise ConfigError(f"{spec!r} gives no folder after '='; write {name.strip()}=FOLDER or {name.strip()}")
        return name.strip(), [], folder.strip() if equals else None


def positive(config: Any, *names: str) -> None:
    """Raise `ConfigError` unless the named settings are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"setting {name!r} must be at least 1, got {getattr(config, name)}")
