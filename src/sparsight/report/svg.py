"""matplotlib's SVG made fit for a page: no ids that clash, no style that a strict page forbids, points that can be focused and named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
_LONG = re.compile(r"-?\d+\.\d{3,}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)px")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_INK = {"#000000": "currentColor", "#000": "currentColor"}
_DEFAULT = {"stroke-linecap": "butt", "stroke-linejoin": "miter"}
_GEOMETRY = {"d", "x", "y", "transform", "viewBox", "points"}
RING = 8.5


def inline(svg: str, prefix: str, classes: str, label: str, points: Mapping[int, str]) -> str:
    """An element for a page.

    Parameters
    ----------
    svg : str
        From `plots.to_svg`.
    prefix : str
        Put before ids.
    classes, label : str
        Of the whole plot; the label is its accessible name.
    points : mapping of int to str
        Accessible names of points by their number. A point becomes `<g class="point" data-i=NUMBER>` with a ring to be shown when it is
        focused, and lines of a method `<g class="line" data-m=NUMBER>`.

    Returns
    -------
    str
        Text is text, black is the colour of the text around it, styles are attributes.
    """
    ElementTree.register_namespace("", SVG)
    # It is matplotlib's own; names in it have been escaped.
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    for parent in list(root.iter()):
        for child in list(parent):
            if _tag(child) in ("metadata", "style", "title") or (
                _tag(child) == "defs" and all(_tag(one) == "style" for one in child)
            ):
                parent.remove(child)
    used = {name for element in root.iter() for name in _references(element)}
    for element in root.iter():
        _plain(element, prefix, used)
    for element in list(root.iter()):
        gid = element.get("id", "").removeprefix(prefix)
        kind, _, number = gid.partition("-")
        if kind == "point" and number.isdigit() and int(number) in points:
            _make_point(element, int(number), points[int(number)])
        elif kind == "line" and number.isdigit():
            element.attrib.pop("id")
            element.set("class", "line")
            element.set("data-m", number)
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    root.attrib.update(
        {
            "class": f"plot {classes}",
            "role": "group",
            "aria-label": label,
            "stroke-linejoin": "round",
            "fill": "currentColor",
        }
    )
    return ElementTree.tostring(root, encoding="unicode")


def _plain(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Styles to attributes, references to this plot's ids."""
    for part in element.attrib.pop("style", "").split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name == "font":
            if size := _SIZE.search(value):
                element.set("font-size", size[1])
        elif name and _DEFAULT.get(name) != value:
            element.set(name, value)
    for name in ("fill", "stroke"):
        if element.get(name) in _INK:
            element.set(name, _INK[element.get(name)])
    for name in _GEOMETRY & element.attrib.keys():
        element.set(name, " ".join(_LONG.sub(_short, element.get(name)).split()))
    element.attrib.pop("font-family", None)  # that of the page
    if (element.text or "").isspace():
        element.text = None
    if (element.tail or "").isspace():
        element.tail = None
    if (link := element.attrib.pop(XLINK, None)) is not None:
        element.set("href", f"#{prefix}{link[1:]}")
    for name, value in element.attrib.items():
        if "url(#" in value and name != "aria-label":
            element.set(name, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
    if (own := element.get("id")) is not None:
        if own in used or own.startswith(("point-", "line-")):
            element.set("id", prefix + own)
        else:
            element.attrib.pop("id")


def _references(element: ElementTree.Element) -> list[str]:
    found = [element.get(XLINK, "")[1:]] if element.get(XLINK) else []
    return found + [name for value in element.attrib.values() for name in _REFERENCE.findall(value)]


def _make_point(group: ElementTree.Element, number: int, name: str) -> None:
    group.attrib.pop("id")
    group.attrib.update(
        {"class": "point", "data-i": str(number), "role": "button", "tabindex": "-1", "aria-label": name}
    )
    place = next((one for one in group.iter() if _tag(one) == "use"), None)
    if place is not None:
        ring = ElementTree.SubElement(group, f"{{{SVG}}}circle")
        ring.attrib.update({"class": "ring", "cx": place.get("x", "0"), "cy": place.get("y", "0"), "r": str(RING)})


def _tag(element: ElementTree.Element) -> str:
    return element.tag.removeprefix(f"{{{SVG}}}") if isinstance(element.tag, str) else ""


def _short(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
