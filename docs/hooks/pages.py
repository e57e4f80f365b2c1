"""Pages that are not written by hand: references, benchmarks as they stand in their folders, the changelog."""

from __future__ import annotations

from pathlib import Path

from docs.hooks import command_line, methods

ROOT = Path(__file__).parents[2]
MODULES = ("tokens", "units", "activations", "evaluation", "training", "runtime", "models", "ops", "artifacts", "errors")
BENCHMARKS = ("", "token_importance/", "contextual_sparsity/", "activation_sparsity/", "serving/")


def made() -> dict[str, str]:
    """Markdown of each made page by its path in the site's sources."""
    found = {
        "reference/cli.md": command_line.page(),
        "methods/index.md": methods.overview(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "reference/python/sparsight.md": "# sparsight\n\n::: sparsight\n",
    }
    for module in MODULES:
        found[f"reference/python/{module}.md"] = f"# sparsight.{module}\n\n::: sparsight.{module}\n"
    for folder in BENCHMARKS:
        found[f"benchmarks/{folder}README.md"] = benchmark(ROOT / "benchmarks" / folder / "README.md")
    return found


def benchmark(path: Path) -> str:
    """A benchmark's page: its links hold as they are, but for the front page, which is another one here."""
    return path.read_text(encoding="utf-8").replace("](../README.md", "](../index.md").replace("](../../README.md", "](../../index.md")


def pictures() -> dict[str, Path]:
    """Pictures of the benchmark pages by their path in the site's sources."""
    folder = ROOT / "benchmarks"
    return {f"benchmarks/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.glob("*/results/*.svg"))}
