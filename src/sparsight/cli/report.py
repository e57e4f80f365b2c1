"""`sparsight report`: results of evaluations and speeds as one HTML file."""

from __future__ import annotations

import argparse

_EPILOG = """RESULTS are what `sparsight evaluate --json` (with --select, --units, --activations, --tasks or --harness) and
`sparsight bench speed --json` write, finished or not. Only what was measured on the same model, text, length and protocol is put into one
plot. The page is one file without any request to a host: plots with 95 % intervals and the Pareto front, recall by layer and KV head, speed
against the bound of the bandwidth, configuration and hashes behind each point, and tables to copy as LaTeX, Markdown, CSV or TSV.

A file that cannot be reported (of a newer version, cut off, edited by hand, or something else) is named with the reason on standard error and
on the page. The exit status is 0 if anything could be reported, and 2 if nothing could or the page cannot be written.

  sparsight report results.json speed.json --out report.html
  sparsight report benchmarks/token_importance/results --out report.html --plots plots"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "report",
        help="put results into one HTML page",
        description="Put results into one self-contained HTML page: quality against bytes, recall, speed, tables for a paper.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="result files, or folders with *.json and *.json.partial below them",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE.html", help="the page; an older report there is replaced, nothing else is"
    )
    parser.add_argument("--plots", metavar="FOLDER", help="also write each plot as PNG and SVG")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    import sys

    from ..errors import ConfigError
    from ..report.comparisons import compare
    from ..report.html_page import require_jinja
    from ..report.results import read_results
    from ..report.writing import check_out, write_report
    from .console import one_line, output
    from .progress import bar

    require_jinja()
    check_out(args.out, args.plots)
    results, left_out = read_results(args.results)
    if not results and len(left_out) == 1:
        raise ConfigError(f"nothing to report: {left_out[0].file} {left_out[0].reason}")
    for one in left_out:
        sys.stderr.write(one_line(f"sparsight: left out {one.file}: {one.reason}") + "\n")
    if not results:
        raise ConfigError(f"nothing to report: none of {len(left_out)} files is a result; see the lines above")
    with bar("drawing") as update:
        written = write_report(compare(results), left_out, args.out, args.plots, update)
    output().print(written)
    return 0
