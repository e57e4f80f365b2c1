#!/usr/bin/env python3
"""Make training text that anyone can fetch from the Python package index: Wikipedia articles and Python's manual.

The wheel of gensim 4.4.0 carries the first articles of an English Wikipedia dump as test data. This script takes that
file out of the wheel (which is neither installed nor run), turns the wiki markup into prose in the form of raw
WikiText, and writes one ``.txt`` per article. Beside them it writes the long topics of the manual that every CPython
carries in ``pydoc_data.topics``, so that text about code is represented. ``SOURCE.md`` says where all of it comes from.

    pip install mwparserfromhell==0.7.2
    python recipes/wikipedia_text.py --out text --drop-overlap evaluation.txt

The Wikipedia part is the same wherever it is made. The Python part is that of the running interpreter, which
``SOURCE.md`` names. The article shipped as Sparsight's demonstration document is left out, so that training text never
contains it.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from wikimarkup import article_text

GENSIM = "gensim==4.4.0"
DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
DUMP_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
DEMO_TITLE = "Aardvark"
SHORTEST_ARTICLE = 2000
PROSE_LINE = 80  # shorter lines are list items and headings, and do not make an article
SHORTEST_TOPIC = 4000
RUN_WORDS = 13
DISAMBIGUATION = re.compile(r"\{\{\s*(disambig|hndis|geodis)", re.IGNORECASE)


class RecipeError(Exception):
    """A file or a tool that this script needs is missing or is another one than expected."""


def dump_pages(wheel: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(title, wiki markup)`` of every article in the wheel's dump, redirects left out."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(DUMP)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RecipeError(f"{wheel}: expected the wheel of {GENSIM} with {DUMP} in it ({error})") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != DUMP_SHA256:
        raise RecipeError(f"{wheel}: expected sha256 {DUMP_SHA256} for {Path(DUMP).name}, got {digest}; use {GENSIM}")
    yield from xml_pages(bz2.decompress(data).decode("utf-8"))


def xml_pages(xml: str) -> Iterator[tuple[str, str]]:
    """Yield ``(title, wiki markup)`` of the articles of a MediaWiki export."""
    # The standard parser expands entities without bound; the hash check before it makes that harmless.
    for page in ElementTree.fromstring(xml).iterfind("{*}page"):
        if page.find("{*}redirect") is None and page.findtext("{*}ns") == "0":
            yield page.findtext("{*}title", "").strip(), page.findtext("{*}revision/{*}text", "")


def manual_topics() -> dict[str, str]:
    """Return the long topics of the running interpreter's manual, those told again inside a longer one left out."""
    from pydoc_data.topics import topics

    kept: dict[str, str] = {}
    told: set[int] = set()
    for name, text in sorted(topics.items(), key=lambda item: (-len(item[1]), item[0])):
        runs = word_runs(text)
        if len(text) >= SHORTEST_TOPIC and len(runs & told) <= 0.1 * len(runs):
            kept[name] = text.strip("\n") + "\n"
            told |= runs
    return dict(sorted(kept.items()))


def word_runs(text: str, length: int = RUN_WORDS) -> set[int]:
    """Return hashes of every run of ``length`` words, punctuation and letter case put aside."""
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)}


def make_texts(wheel: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return ``(articles by title, manual topics by name)`` that are long enough, without the demonstration article."""
    articles = {}
    for title, markup in dump_pages(wheel):
        if title == DEMO_TITLE or title.endswith("(disambiguation)") or DISAMBIGUATION.search(markup):
            continue
        text = article_text(title, markup)
        if sum(len(line) for line in text.splitlines() if len(line) >= PROSE_LINE) >= SHORTEST_ARTICLE:
            articles[title] = text
    return dict(sorted(articles.items())), manual_topics()


def source_note(articles: Sequence[str], topics: Sequence[str]) -> str:
    """Return the Markdown note that goes with the texts: authors, licences, carrier, and what was changed."""
    return f"""# Where these texts come from

## `wikipedia-*.txt`: {len(articles)} articles of the English Wikipedia

By the contributors to the articles, whom each article's history at `https://en.wikipedia.org/wiki/TITLE` names.
Licence: [CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/), as for any copy or adaptation of them.
Taken from `{Path(DUMP).name}` (sha256 `{DUMP_SHA256}`), which the wheel `{GENSIM}` carries as test data.
Changed: markup, tables, notes, formulas, lists of sources and links were removed; the words were not edited.
Articles: {"; ".join(articles)}.

## `python-*.txt`: {len(topics)} topics of the Python manual

Copyright Python Software Foundation; licence: [PSF License Version 2](https://docs.python.org/3/license.html).
Taken from `pydoc_data.topics` of {platform.python_implementation()} {platform.python_version()}, unchanged.
Topics: {"; ".join(topics)}.
"""


def download_wheel(folder: Path) -> Path:
    """Download the wheel through pip, without its dependencies, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    if subprocess.run([*command, "--dest", str(folder), GENSIM], check=False).returncode:
        raise RecipeError(f"pip could not download {GENSIM}; check the network, or give a wheel you have with --wheel")
    return next(folder.glob("gensim-*.whl"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the texts and their ``SOURCE.md``; return the exit code."""
    parser = argparse.ArgumentParser(description="Make training text from the Wikipedia articles in the gensim wheel.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the texts; made if missing")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {GENSIM}, if you have it already")
    parser.add_argument(
        "--drop-overlap",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="leave out texts that share words with FILE",
    )
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            articles, topics = make_texts(options.wheel or download_wheel(Path(folder)))
        write_texts(options.out, articles, topics, options.drop_overlap)
    except (RecipeError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_texts(out: Path, articles: dict[str, str], topics: dict[str, str], evaluation: Sequence[Path] = ()) -> None:
    """Write one file per text in place of those of an earlier run, without those that an evaluation file overlaps."""
    seen = set().union(*(word_runs(path.read_text(encoding="utf-8")) for path in evaluation))
    out.mkdir(parents=True, exist_ok=True)
    # Texts of an earlier run may be among those left out now; none of them may stay to be trained on.
    for stale in [*out.glob("wikipedia-*.txt"), *out.glob("python-*.txt")]:
        stale.unlink()
    characters = 0
    for prefix, texts in (("wikipedia", articles), ("python", topics)):
        for name in list(texts):
            shared = len(word_runs(texts[name]) & seen)
            if shared:
                print(f"{prefix} {name}: {shared} runs of {RUN_WORDS} words are in the evaluation text; left out")
                del texts[name]
                continue
            slug = re.sub(r"[^\w()-]+", "_", name)
            (out / f"{prefix}-{slug}.txt").write_text(texts[name], encoding="utf-8", newline="\n")
            characters += len(texts[name])
    (out / "SOURCE.md").write_text(source_note(list(articles), list(topics)), encoding="utf-8", newline="\n")
    print(f"{len(articles)} articles and {len(topics)} manual topics, {characters:,} characters, in {out}")


if __name__ == "__main__":
    sys.exit(main())
