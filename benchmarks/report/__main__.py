"""How large a report is, and how long Chromium takes to open it: of the grid of token importance, and of all results here.

    python -m benchmarks.report

Needs the extras `report` and `serve-checks`, and Chromium. Each opening is in a fresh browser context that is offline.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.browser import chromium
from sparsight.artifacts import write_atomically
from sparsight.errors import SparsightError
from sparsight.report.comparisons import compare
from sparsight.report.results import read_results
from sparsight.report.writing import write_report

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent
REPORTS = {"grid": BENCHMARKS / "token_importance" / "results", "all": BENCHMARKS}
WIDTHS = (1280, 390)


def main() -> int:
    """Measure both reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=11, help="how often each is opened at each width (default: 11)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "report.json")
    args = parser.parse_args()
    try:
        found = {name: measure(folder, args.times) for name, folder in REPORTS.items()}
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    packages = ("sparsight", "matplotlib", "jinja2", "playwright")
    versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    write_atomically(args.out, json.dumps({"reports": found, "versions": versions}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


def measure(folder: Path, times: int) -> dict[str, Any]:
    """Build a report of a folder and open it, `times` times at each width."""
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "report.html"
        began = time.monotonic()
        comparisons = compare(read_results([folder])[0])
        write_report(comparisons, [], page)
        seconds = time.monotonic() - began
        return {
            "comparisons": len(comparisons),
            "figures": sum(len(one.points) for one in comparisons),
            "bytes": page.stat().st_size,
            "build_seconds": round(seconds, 1),
            **open_page(page, times),
        }


def open_page(page: Path, times: int) -> dict[str, Any]:
    """Milliseconds until a page is loaded, its scripts have run and it has been painted; and what it asked for."""
    asked: set[str] = set()
    opened: dict[str, Any] = {}
    with chromium() as browser:
        for width in WIDTHS:
            taken = []
            for _ in range(times):
                context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
                tab = context.new_page()
                tab.on("request", lambda one: asked.add(one.url))
                began = time.monotonic()
                tab.goto(page.as_uri(), wait_until="load")
                tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                taken.append(1e3 * (time.monotonic() - began))
                over = tab.evaluate("document.scrollingElement.scrollWidth") - width
                context.close()
            middle, slowest = round(statistics.median(taken)), round(max(taken))
            opened[str(width)] = {"median_ms": middle, "slowest_ms": slowest, "beyond_the_edge_px": max(0, over)}
        opened["chromium"] = browser.version
    requests = [url for url in asked if not url.startswith(("data:", page.as_uri()))]
    return {"opened": opened, "requests_to_others": len(requests), "times": times}


if __name__ == "__main__":
    sys.exit(main())
