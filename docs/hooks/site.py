"""What MkDocs calls: pages that exist only when the site is built, and tables filled into written ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from docs.hooks import fill, pages  # noqa: E402

_FENCE_MARK = re.compile(r"^```(bash|python) (slow|server|client|shown)$", re.M)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that are made or lie elsewhere in the repository."""
    for uri, content in pages.made().items():
        files.append(File.generated(config, uri, content=content))
    for uri, path in pages.pictures().items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the tables in, and take off the marks that only tests read."""
    try:
        return fill.filled(_FENCE_MARK.sub(r"```\1", markdown))
    except (KeyError, ValueError) as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error
