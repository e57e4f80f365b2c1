"""A report as one HTML file that asks for nothing else: plots, tables and what stands behind them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from ..errors import ConfigError
from . import words
from .columns import Table, table
from .comparisons import TITLES, Comparison
from .copying import copies
from .drawing import SHAPES, WIDE, to_files, to_svg
from .plots import draw
from .points import TOKENS, LeftOut
from .reading_map import require_matplotlib
from .styles import order, styles
from .svg import inline

GENERATOR = "sparsight report"
"""How a page says by whom it was made, so that nothing else is written over."""

LEVELS = 20
_MOST_OPEN = 6
Progress = Callable[[int, int, str], None]


def require_jinja() -> None:
    """Raise `ConfigError` unless pages can be written."""
    require_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ConfigError(
            "a report needs Jinja2, which is not installed; run: pip install 'sparsight[report]'"
        ) from None


def build_page(
    comparisons: Sequence[Comparison], left_out: Sequence[LeftOut] = (), progress: Progress | None = None
) -> str:
    """HTML of a report.

    Parameters
    ----------
    comparisons : sequence of Comparison
    left_out : sequence of LeftOut
        Files that are named at the end, with the reason.
    progress : callable, optional
        progress(comparisons drawn, comparisons, title)

    Raises
    ------
    ConfigError
        If matplotlib or Jinja2 is missing.
    """
    require_jinja()
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    from .. import __version__

    known = order(comparison.methods for comparison in comparisons)
    names = titles(comparisons)
    sections, data = [], {}
    for i, comparison in enumerate(comparisons):
        if progress is not None:
            progress(i, len(comparisons), names[comparison.slug])
        shown = table(comparison)
        sections.append(_section(comparison, names[comparison.slug], shown, known, Markup))
        sections[-1]["open"] = i < 2 or len(comparisons) <= _MOST_OPEN
        data[comparison.slug] = _data(comparison, shown)
    style, script = _own("page.css") + _heat_colours(), _own("page.js")
    environment = Environment(
        loader=DictLoader({"page": _own("page.html.jinja")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page").render(
        generator=GENERATOR,
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; base-uri 'none'; form-action 'none'",
        data=Markup(
            json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c").replace("&", "\\u0026")
        ),
        sections=sections,
        kinds=[
            (TITLES[kind], [s for s in sections if s["kind"] == kind])
            for kind in dict.fromkeys(s["kind"] for s in sections)
        ],
        overview=_overview(comparisons),
        left_out=[(reason, [one.file for one in left_out if one.reason == reason]) for reason in dict.fromkeys(one.reason for one in left_out)],
    )


def titles(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """A title of each, by its slug; what else differs is added where two would be alike."""
    found = {one.slug: one.title for one in comparisons}
    for name in ("chunks", "format", "run"):
        for title in list(found.values()):
            alike = [one for one in comparisons if found[one.slug] == title]
            if len(alike) > 1 and len({dict(one.settings).get(name) for one in alike}) > 1:
                for one in alike:
                    if value := dict(one.settings).get(name):
                        found[one.slug] = f"{title}, {name} {value}" if name != "chunks" else f"{title}, {value} chunks"
    for one in comparisons:
        if list(found.values()).count(found[one.slug]) > 1:
            found[one.slug] += f", {PurePath(one.sources[0].file).name}"
    return {one.slug: found[one.slug] + (f" (provisional: {one.state})" if one.state else "") for one in comparisons}


def _section(comparison: Comparison, title: str, shown: Table, known: Sequence[str], markup: type) -> dict[str, Any]:
    chosen = styles(comparison.methods, known)
    labels = {i: words.point_name(comparison, p) for i, p in enumerate(comparison.points)}
    plots = []
    for shape in SHAPES:
        prefix = f"{comparison.slug}-{shape[0]}-"
        plots.append(
            markup(
                inline(
                    to_svg(draw(comparison, chosen, shape), prefix),
                    prefix,
                    shape,
                    f"Plot: {title}. The table below has its figures.",
                    labels,
                )
            )
        )
    return {
        "slug": comparison.slug,
        "kind": comparison.kind,
        "title": title,
        "short": title.partition(": ")[2],
        "lead": words.LEADS[comparison.kind],
        "state": comparison.state,
        "settings": comparison.settings,
        "plots": plots,
        "methods": comparison.methods,
        "front": words.front_items(comparison),
        "front_sentence": words.front_sentence(comparison),
        "table": shown,
        "star": any(p.ceiling for p in comparison.points),
        "sources": words.source_facts(comparison),
        "configurations": [
            (s.file, json.dumps(s.configuration, indent=1, ensure_ascii=False))
            for s in comparison.sources
            if s.configuration
        ],
        "heat": _heat(comparison),
        "no_heads": comparison.kind == TOKENS,
        "copies": ("LaTeX", "Markdown", "CSV", "TSV"),
    }


def _data(comparison: Comparison, shown: Table) -> dict[str, Any]:
    """What scripts need: behind each point, tables to copy, and maps."""
    sources = [source.file for source in comparison.sources]
    return {
        "points": [
            {
                "name": words.point_name(comparison, p),
                "title": p.name,
                "method": comparison.methods.index(p.method),
                "facts": words.behind(comparison, p),
                "source": sources.index(p.source.file),
            }
            for p in comparison.points
        ],
        "settings": [("model", comparison.model), *comparison.settings],
        "sources": words.source_facts(comparison),
        "copies": copies(shown),
        "heat": [p.heads for p in comparison.points if p.heads is not None],
    }


def _heat(comparison: Comparison) -> dict[str, Any] | None:
    """Names of the maps, and which two are shown first: the best that can be deployed, and a ceiling if there is one."""
    with_map = [p for p in comparison.points if p.heads is not None]
    if not with_map:
        return None
    able = [i for i, p in enumerate(with_map) if not p.ceiling] or [0]
    first = max(able, key=lambda i: with_map[i].figures.get("mass_outside") or 0.0)
    same = [i for i, p in enumerate(with_map) if i != first and p.budget == with_map[first].budget]
    second = next((i for i in same if with_map[i].ceiling), same[0] if same else first)
    return {
        "names": [p.name + (" *" if p.ceiling else "") for p in with_map],
        "first": first,
        "second": second,
        "maps": [heat_rows(with_map[i].heads) for i in (first, second)],
        "heads": [max((len(one) for one in with_map[i].heads if one), default=1) for i in (first, second)],
    }


def heat_rows(heads: Sequence[Sequence[float] | None]) -> list[list[tuple[str, int]] | None]:
    """Text and level (0 to `LEVELS`) of each head, a list over layers; None for a layer in which the method does not choose."""
    return [
        None if one is None else [(f"{share:.2f}", round(LEVELS * min(max(share, 0.0), 1.0))) for share in one]
        for one in heads
    ]


def _overview(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    models: dict[tuple[str, str], int] = {}
    texts: dict[tuple[str, str], int] = {}
    versions: dict[str, list[str]] = {}
    for comparison in comparisons:
        told = dict(comparison.settings)
        _count(models, (comparison.model, told.get("model hash", "unknown")))
        if "text hash" in told:
            name = next((s.text for s in comparison.sources if s.text), "a text whose name the files do not hold")
            _count(texts, (name, told["text hash"]))
        for source in comparison.sources:
            for name, value in source.versions.items():
                if value is not None and value not in versions.setdefault(str(name), []):
                    versions[str(name)].append(value)
    return {
        "models": [(*key, count) for key, count in models.items()],
        "texts": [(*key, count) for key, count in texts.items()],
        "versions": sorted((name, ", ".join(sorted(found))) for name, found in versions.items() if found),
        "points": sum(len(one.points) for one in comparisons),
        "files": len({source.file for one in comparisons for source in one.sources}),
    }


def _count(counts: dict[tuple[str, str], int], key: tuple[str, str]) -> None:
    counts[key] = counts.get(key, 0) + 1


def _heat_colours() -> str:
    """Classes of the levels of a map: cividis, which colour-blind readers see as others do."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    def rule(level: int) -> str:
        return f".h{level}{{background:{to_hex(colormaps['cividis'](level / LEVELS))};color:{'#fff' if level < 0.55 * LEVELS else '#000'}}}"

    return "".join(map(rule, range(LEVELS + 1)))


def _own(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a policy names a script or style that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def plot_files(comparisons: Sequence[Comparison]) -> Mapping[str, bytes]:
    """PNG and SVG of all plots and maps, by file name."""
    require_matplotlib()
    from .recall_maps import heat

    known = order(comparison.methods for comparison in comparisons)
    found: dict[str, bytes] = {}
    for comparison in comparisons:
        drawn = {comparison.slug: draw(comparison, styles(comparison.methods, known), WIDE)}
        for n, budget in enumerate(dict.fromkeys(p.budget for p in comparison.points if p.heads is not None)):
            drawn[f"{comparison.slug}-recall-{n + 1}"] = heat(comparison, budget)
        for name, figure in drawn.items():
            found |= {f"{name}.{ending}": data for ending, data in to_files(figure, name).items()}
    return found
