"""Results put together where they may be compared: the same model, text, length and protocol."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from .pareto import HIGHER_IS_BETTER, front
from .points import ACTIVATIONS, CHOICE, DENSE, KINDS, SPEED, TASKS, TOKENS, UNITS, WRITTEN, Point, Result, Source

TITLES = {
    TOKENS: "Choosing tokens", UNITS: "Heads and neurons left out", ACTIVATIONS: "Matrices cut by their inputs",
    TASKS: "Long-context task", CHOICE: "Multiple choice", WRITTEN: "Written answers", SPEED: "Speed",
}  # fmt: skip

_USUAL = (("spread", "local"), ("rule", "threshold"), ("pool", "layer"))


@dataclass(frozen=True)
class Comparison:
    """Figures that may be compared.

    Attributes
    ----------
    kind, model, state
        See `Result`.
    settings : tuple of (name, value)
    points : tuple of Point
        Dense once. A method that stands in several files is named after the file too.
    pareto : tuple of Point
    """

    kind: str
    model: str
    settings: tuple[tuple[str, str], ...]
    points: tuple[Point, ...]
    state: str
    pareto: tuple[Point, ...]

    @property
    def slug(self) -> str:
        """A short name that is the same whenever the same is compared."""
        told = repr((self.kind, self.model, self.settings, self.state)).encode("utf-8", "backslashreplace")
        return f"{self.kind}-{hashlib.sha256(told).hexdigest()[:8]}"

    @property
    def title(self) -> str:
        """Kind, model and what is unusual."""
        told = dict(self.settings)
        text = {s.text for s in self.sources if s.text}
        parts = [told["task"]] if "task" in told else []
        parts += [told["length"]] if "length" in told else []
        parts += [next(iter(text))] if len(text) == 1 else []
        parts += [told["processor"]] if "processor" in told else []
        for key in ("adaptive", "spread", "rule", "pool", "heads", "select", "interval", "neighbours", "pages"):
            if key in told and (key, told[key]) not in _USUAL:
                # Of a method with its settings and hashes, or a folder, the name.
                parts.append(f"{key} {PurePath(told[key].split(' ')[0]).name}")
        parts += [name for name in ("thresholds", "simulate prefill", "per query head", "cut prompt") if name in told]
        parts += [f"{told['shots']} shots"] if "shots" in told else []
        return f"{TITLES[self.kind]}: {', '.join([self.model, *parts])}"

    @property
    def sources(self) -> list[Source]:
        """Files, each once."""
        return list({point.source.file: point.source for point in self.points}.values())

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in order."""
        return list(dict.fromkeys(point.method for point in self.points))


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Results of equal keys in one comparison each; kinds in the order of `KINDS`, the largest of a kind first."""
    grouped: dict[tuple, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.key, []).append(result)
    names = {
        source.configuration["data_hash"]: source.text
        for source in _sources(results)
        if source.text and "data_hash" in source.configuration
    }
    found = []
    for group in grouped.values():
        points = _merged([_named(point, names) for result in group for point in result.points])
        first = group[0]
        pareto = () if first.kind == SPEED else tuple(front(points, first.kind in HIGHER_IS_BETTER))
        found.append(Comparison(first.kind, first.model, first.settings, tuple(points), first.state, pareto))
    return sorted(found, key=lambda one: (KINDS.index(one.kind), bool(one.state), -len(one.points)))


def _sources(results: Sequence[Result]) -> list[Source]:
    return list({id(point.source): point.source for result in results for point in result.points}.values())


def _named(point: Point, names: dict[str, str]) -> Point:
    """With the name of its text, if another file knows it."""
    text = names.get(str(point.source.configuration.get("data_hash")))
    return point if point.source.text or text is None else replace(point, source=replace(point.source, text=text))


def _merged(points: Sequence[Point]) -> list[Point]:
    """Each figure once, each name for one method of one file."""
    kept: dict[tuple, Point] = {}
    for point in points:
        same = (
            point.method,
            point.settings,
            point.budget,
            point.value,
            point.interval,
            point.bytes,
            point.panel,
            point.figures.get("context"),
        )
        kept.setdefault(same, point)
    merged: list[Point] = []
    seen_dense: set[tuple] = set()
    for point in kept.values():
        place = (point.panel, point.value, point.bytes, point.figures.get("context"))
        if point.method != DENSE or place not in seen_dense:
            merged.append(point)
        if point.method == DENSE:
            seen_dense.add(place)
    files: dict[str, list[str]] = {}
    for point in merged:
        files.setdefault(point.method, [])
        if point.source.file not in files[point.method]:
            files[point.method].append(point.source.file)
    places = Counter((p.method, p.budget, p.panel, p.figures.get("context")) for p in merged)
    twice = {method for (method, *_), count in places.items() if count > 1}
    return [
        replace(p, method=f"{p.method} ({_short(p, files[p.method])})")
        if p.method in twice and len(files[p.method]) > 1
        else p
        for p in merged
    ]


def _short(point: Point, files: list[str]) -> str:
    """The file's name, with as many of its folders as tell it from the others."""
    parts = PurePath(point.source.file).parts
    for count in range(1, len(parts) + 1):
        ends = [PurePath(file).parts[-count:] for file in files]
        if len(set(ends)) == len(files):
            return "/".join(parts[-count:])
    return point.source.file
