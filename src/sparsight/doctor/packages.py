"""The packages that Sparsight needs and those of its extras, as its own metadata name them, against what is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "sparsight"


@dataclass(frozen=True)
class Package:
    """A requirement and what is installed for it.

    Attributes
    ----------
    name, wanted : str
        As the metadata have them, such as `numpy` and `<3,>=2.0`.
    installed : str or None
        The version.
    """

    name: str
    wanted: str
    installed: str | None

    @property
    def fits(self) -> bool:
        """Whether it is installed in a version that was asked for."""
        from packaging.requirements import Requirement

        return self.installed is not None and Requirement(self.spec).specifier.contains(self.installed, prereleases=True)

    @property
    def spec(self) -> str:
        """What pip takes."""
        return f"{self.name}{self.wanted}"


@dataclass(frozen=True)
class Extra:
    """An extra, with the packages that it adds.

    Attributes
    ----------
    name : str
    packages : tuple of Package
    """

    name: str
    packages: tuple[Package, ...]

    @property
    def missing(self) -> tuple[Package, ...]:
        """Those that are not there, or in another version."""
        return tuple(package for package in self.packages if not package.fits)

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install '{DISTRIBUTION}[{self.name}]'"


def needed() -> list[Package]:
    """What Sparsight cannot do without; empty where its metadata are not to be found or not to be read."""
    return [_package(need) for need in _requirements() if need.marker is None or need.marker.evaluate({"extra": ""})]


def extras() -> list[Extra]:
    """The extras in the order of their names."""
    try:
        names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []
    conditional = [need for need in _requirements() if need.marker is not None and not need.marker.evaluate({"extra": ""})]
    return [
        Extra(name, tuple(_package(need) for need in conditional if need.marker is None or need.marker.evaluate({"extra": name})))
        for name in sorted(names)
    ]


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError, ValueError):  # not there, or its metadata are damaged
        return None


def _requirements() -> list[Requirement]:
    try:
        from packaging.requirements import Requirement

        return [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    except (ImportError, metadata.PackageNotFoundError):
        return []


def _package(need: Requirement) -> Package:
    return Package(need.name, str(need.specifier), installed(need.name))
