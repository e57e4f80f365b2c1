"""Turn wiki markup into prose in the form of raw WikiText: words kept, everything a reader does not read left out."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

import mwparserfromhell as mw
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink


def _names(*lines: str) -> frozenset[str]:
    """Return the names in lines of names that semicolons part."""
    return frozenset(name.strip() for line in lines for name in line.split(";"))


DROPPED_SECTIONS = _names(
    "see also; references; external links; further reading; notes; bibliography; footnotes; sources; citations",
    "notes and references; references and notes; works cited; general references; primary sources; secondary sources",
    "references and further reading; sources and references; sources and further reading; explanatory notes; endnotes",
    "bibliography and further reading; gallery; literature; documentaries; references cited; informational notes",
)
DROPPED_TAGS = _names("ref; references; table; gallery; timeline; imagemap; source; syntaxhighlight; hr; pre; score")
DROPPED_LINKS = re.compile(r"\s*(file|image|category|media|[a-z]{2,3}|simple|zh-[a-z-]+)\s*:", re.IGNORECASE)
BLOCK_TAGS = _names("br; blockquote; p; div; poem; center; li")

# Templates that stand for words of the sentence. Every other template (citations, boxes, notes) is left out.
LAST_ARGUMENT = _names("lang; transl; rtl-lang; angbr; angle bracket; visible anchor; script; ipa")
FIRST_ARGUMENT = _names(
    "nowrap; nobr; small; smaller; midsize; big; em; strong; sc; smallcaps; sup; sub; abbr; linktext; unicode; val",
    "quote; cquote; blockquote; quotation; nihongo; iast; polytonic; script/hebrew; math; mvar; music; keypress; sic",
    "oldstyledate; flag; flagu; flagcountry; nomorelinks; carbon; hydrogen",
)
JOINED_ARGUMENTS = _names("chem; chem2")
FIXED = {
    "ndash": "–",
    "spaced ndash": " – ",
    "snd": " – ",
    "snds": " – ",
    "mdash": "—",
    "mdashb": "—",
    "nbsp": " ",
    "spaces": " ",
    "'": "'",
    "' \"": "'\"",
    "=": "=",
}
RANGE_WORDS = _names("-; –; to; and; or; by; x; ×; ±; +/-; to(-); and(-)")
UNSPEAKABLE = "\x00"  # stands where words cannot follow (formulas); a line that holds it is dropped whole
RAISED = "\x01"  # stands before a superscript: a power keeps a mark of it, 1st and km2 do without
RESIDUE = re.compile(r"[{}|]|\[\[|\]\]|'''|</?\w+[^>]*>|https?://|__[A-Z]+__|" + UNSPEAKABLE)


def render(code: mw.wikicode.Wikicode) -> str:
    """Return the words of parsed wiki markup, those of links and formatting among them."""
    return "".join(_render_node(node) for node in code.nodes)


def _render_node(node: mw.nodes.Node) -> str:
    if isinstance(node, Text):
        return node.value
    if isinstance(node, HTMLEntity):
        return node.normalize()
    if isinstance(node, Wikilink):
        title = str(node.title)
        if DROPPED_LINKS.match(title):
            return ""
        return render(node.text) if node.text is not None else title.lstrip(":")
    if isinstance(node, ExternalLink):
        return render(node.title) if node.title is not None else ""
    if isinstance(node, Heading):
        return f"\n\n{'=' * node.level} {render(node.title).strip()} {'=' * node.level}\n\n"
    if isinstance(node, Template):
        return _render_template(node)
    if isinstance(node, Tag):
        return _render_tag(node)
    return ""


def _render_tag(node: Tag) -> str:
    name = str(node.tag).strip().lower()
    if name == "math":
        return UNSPEAKABLE
    if name in DROPPED_TAGS:
        return ""
    if name in {"li", "dd", "dt"} and node.wiki_markup:
        return ""
    words = render(node.contents) if node.contents is not None else ""
    if name == "sup":
        return RAISED + words
    if name in BLOCK_TAGS:
        return f"\n{words}\n" if words else " "
    return words


def _render_template(node: Template) -> str:
    name = str(node.name).strip().lower().replace("_", " ")
    arguments = [render(p.value).strip() for p in node.params if not p.showkey]
    named = {str(p.name).strip().lower(): p.value for p in node.params if p.showkey}
    arguments += [render(named[key]).strip() for key in ("1", "text", "quote") if key in named and not arguments]
    if name in FIXED:
        return FIXED[name]
    if not arguments:
        return ""
    if name in {"convert", "cvt"}:
        return _render_measure(arguments)
    if name == "as of":
        return f"As of {arguments[0]}"
    if name in {"circa", "c."}:
        return f"c. {arguments[0]}"
    if name in {"frac", "sfrac"}:
        return _render_fraction(arguments)
    if name == "e":
        return f" × 10^{arguments[0]}"
    if name in JOINED_ARGUMENTS:
        return "".join(arguments)
    if name == "uss":
        return f"USS {arguments[0]}"
    if name in LAST_ARGUMENT or name.startswith("lang-"):
        return arguments[0] if name.startswith("lang-") else arguments[-1]
    if name in FIRST_ARGUMENT:
        return arguments[0] + (f" {render(named['u'])}" if "u" in named else "")
    return ""


def _render_fraction(arguments: Sequence[str]) -> str:
    """Return 2 as "1/2", 3|4 as "3/4" and 1|3|4 as "1 3/4"."""
    *whole, top, bottom = ["1", *arguments] if len(arguments) == 1 else arguments
    return " ".join([*whole, f"{top}/{bottom}"])


def _render_measure(arguments: Sequence[str]) -> str:
    """Return the value and unit that ``{{convert}}`` was given: 5|to|6|km|mi is "5 to 6 km"."""
    words = list(arguments[:1])
    rest = list(arguments[1:])
    while len(rest) > 1 and rest[0].lower() in RANGE_WORDS:
        words += [rest[0], rest[1]]
        rest = rest[2:]
    return " ".join(words + rest[:1]).replace(" - ", "–").replace(" – ", "–")


def article_text(title: str, markup: str) -> str:
    """Return an article as raw WikiText writes it: a `` = Title = `` line, `` = = Section = = `` lines, paragraphs.

    Lines in which markup is left over, or whose formulas cannot be read as words, are dropped, and so are sections
    without prose (lists of sources, links) and headings that nothing follows.
    """
    markup = re.sub(r"<!--.*?-->|__[A-Z]+__", "", markup, flags=re.DOTALL)
    blocks: list[tuple[int, str]] = [(1, title)]
    skipped_level = 0
    for raw in render(mw.parse(markup)).split("\n"):
        line = _tidy(raw)
        heading = re.fullmatch(r"(={2,6}) (.*?) ?\1", line)
        if heading:
            level, name = len(heading[1]), heading[2].strip()
            if skipped_level and level > skipped_level:
                continue
            skipped_level = level if name.lower() in DROPPED_SECTIONS else 0
            while blocks[-1][0] >= level:
                blocks.pop()
            if not skipped_level:
                blocks.append((level, name))
        elif line and not skipped_level and not RESIDUE.search(line) and re.search(r"\w", line):
            blocks.append((0, line))
    while len(blocks) > 1 and blocks[-1][0]:
        blocks.pop()
    return "\n".join(_layout(blocks)).strip("\n") + "\n"


def _layout(blocks: Sequence[tuple[int, str]]) -> Iterator[str]:
    for level, words in blocks:
        if level:
            bars = " ".join("=" * level)
            yield from ("", f" {bars} {words} {bars} ", "")
        else:
            yield words


def _tidy(line: str) -> str:
    """Return a line without the holes that removed templates and notes leave behind."""
    line = re.sub(rf"(?<=\d){RAISED}(?=[-−–]?\d)", "^", html.unescape(line)).replace(RAISED, "")
    line = re.sub(r"'{2,}", "", line.replace("\xa0", " ").replace("\u200b", ""))
    line = re.sub(r"^[\s*:;#]+", "", line)
    line = re.sub(r"\(\s*[,;:/\s–-]*\s*(?=[\w\"'(])", "(", line)
    line = re.sub(r"[,;:\s]+\)", ")", line)
    line = re.sub(r"\s*\((?:[\s,;:/–-]|\bor\b|\band\b)*\)", "", line)
    line = re.sub(r"([;,:])(?:\s*[;,:])+", r"\1", line)
    line = re.sub(r"\s+([,.;:!?)])(?=\s|$)", r"\1", line)
    return re.sub(r"\s+", " ", line).strip()
