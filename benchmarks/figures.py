"""Writes the tables of README.md and benchmarks/README.md from the result files.

    python -m benchmarks.figures

Each page has its tables between `<!-- figures -->` and `<!-- /figures -->`; a test holds them equal to the results.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.activation_sparsity.tables import tables as activation_tables
from benchmarks.contextual_sparsity.tables import tables
from benchmarks.serving.tables import TABLES as SERVING_TABLES
from benchmarks.token_importance.tables import tables as token_tables

HERE = Path(__file__).parent
RESULTS = HERE / "results"
METHODS = ("oracle", "foresight", "lowrank", "butler", "butler-v1", "previous-layer-oracle", "quest", "streaming", "random")
FEW = ("oracle", "foresight", "lowrank", "butler", "quest")
PUBLISHED = {
    "oracle": (6.24, 11.28),
    "butler-v1": (6.32, 11.55),
    "previous-layer-oracle": (8.06, None),
    "streaming": (7.25, None),
    "quest": (22.9, 103.0),
    "random": (12.99, None),
}
"""WikiText-2 perplexity at 50 % of Llama-2-7B and Llama-3.2-1B, from the result files of arXiv:2503.07518v1."""

Row = dict[str, Any]


def rows(name: str) -> dict[tuple[str, str], Row]:
    """Rows of a result file by method and budget; empty if there is none."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    return {(row["method"], row["budget"]): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def delta(row: Row) -> str:
    """The rise of the loss with half of its interval."""
    low, high = row["nll_delta_ci"]
    return f"{row['nll_delta']:+.4f} ± {(high - low) / 2:.4f}"


def table(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body]) + "\n"


def name_of(row: Row) -> str:
    """A method's name, marked if it is a ceiling only."""
    return f"`{row['method']}`" + ("" if row["deployable"] else " (not deployable)")


def methods_table(found: dict[tuple[str, str], Row]) -> str:
    """Methods against budgets 1/4, 1/8 and 1/16, with what they cost at 1/8."""
    body = []
    for name in METHODS:
        if (name, "1/8") in found:
            row = found[name, "1/8"]
            state = f"{row['state_fraction']:.2%}" if row["deployable"] else "–"
            body.append(
                [
                    name_of(row),
                    *(delta(found[name, budget]) for budget in ("1/4", "1/8", "1/16")),
                    f"{row['mass_of_oracle']:.1%}",
                    f"{row['bytes_per_token'] / 1e6:.0f}",
                    state,
                    f"{row['parameters_fraction']:.2%}",
                ]
            )
    heads = ["method", "Δ at 1/4", "Δ at 1/8", "Δ at 1/16", "mass at 1/8, of the oracle's", "MB a token at 1/8", "state, of KV"]
    return table([*heads, "parameters, of the model"], body)


def elsewhere_table() -> str:
    """Other lengths and another text."""
    places = (
        ("long-2048", "WikiText-2, 32 chunks of 2,048"),
        ("long-8192", "WikiText-2, 16 chunks of 8,192"),
        ("shakespeare", "tiny-shakespeare, 64 chunks of 1,024"),
    )
    body = []
    for file, title in places:
        found = rows(file)
        cells = [f"{found[n, '1/8']['nll_delta']:+.4f} ({found[n, '1/16']['nll_delta']:+.4f})" for n in FEW]
        body.append([title, *cells])
    return table(["Δ at 1/8 (1/16) elsewhere", *(f"`{n}`" for n in FEW)], body)


def bytes_table() -> str:
    """Bytes a token against the length of the context."""
    body = []
    for file, title in (("main", "1,024 tokens in the cache"), ("long-2048", "2,048"), ("long-8192", "8,192")):
        found = rows(file)
        body.append([title, *(f"{found[n, '1/8']['bytes_per_token'] / 1e6:.0f}" for n in ("dense", *FEW[1:]))])
    return table(["MB read a token", "dense", *(f"`{n}` 1/8" for n in FEW[1:])], body)


def settings_table() -> str:
    """What each setting of the rule does to the served methods."""
    served = ("foresight", "lowrank", "butler")
    titles = {
        "main": "as it is",
        "int4": "`--index-dtype int4` (state 3.02 %)",
        "interval-4": "`--interval 4`",
        "interval-16": "`--interval 16`",
        "interval-4-neighbours-3": "`--interval 4 --neighbours 3`",
        "neighbours-1": "`--neighbours 1`",
        "thresholds": "`--thresholds` (tokens read: {read})",
    }
    body = []
    for file, title in titles.items():
        if found := rows(file):
            read = ", ".join(f"{found[n, '1/8']['tokens']:.0f}" for n in served)
            body.append([title.format(read=read), *(delta(found[n, "1/8"]) for n in served)])
    return table(["Δ at 1/8 (128 tokens)", *(f"`{n}`" for n in served)], body)


def paper_table() -> str:
    """TokenButler's protocol at half of the tokens: what was printed, and what is measured here, each against its own oracle."""
    body = []
    measured = [rows(name) for name in ("paper", "gemma-paper")]
    names = ("oracle", "butler-v1", "butler", "foresight", "lowrank", "previous-layer-oracle", "previous-layer-oracle:heads=same")
    for name in (*names, "quest", "streaming", "random"):
        printed = PUBLISHED.get(name, (None, None))
        cells = [f"{math.log(p / o):+.4f}" if p else "–" for p, o in zip(printed, PUBLISHED["oracle"], strict=True)]
        for found in measured:
            if (name, "1/2") not in found:
                cells.append("–")
                continue
            row, best = found[name, "1/2"], found["oracle", "1/2"]["nll"]
            cells.append(f"{row['nll'] - best:+.4f} ({row['share_read']:.0%})")
        body.append([f"`{name}`", *cells])
    heads = ["loss over the oracle's at 1/2, nats", "printed, Llama-2-7B", "printed, Llama-3.2-1B"]
    return table([*heads, "SmolLM2-135M (read a KV head)", "Gemma 3 270M (read a KV head)"], body)


def paper_budgets_table(name: str) -> str:
    """TokenButler's protocol at all budgets."""
    found = rows(name)
    budgets = list(dict.fromkeys(budget for _, budget in found))
    every = list(dict.fromkeys(method for method, _ in found if method != "dense"))
    body = [[f"`{method}`", *(delta(found[method, budget]) for budget in budgets)] for method in every]
    return table(["Δ over dense", *budgets], body)


def generation_table(name: str) -> str:
    """Long generation: ends, repetition, loops and bytes held; differences to dense in brackets with their intervals."""
    body = []
    for row in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]:
        figures = [_paired(row, key) for key in ("ended", "rep_4", "loop")]
        held, computed = (
            f"{row[f'kv_bytes{end}'] / 1e6:.1f} + {row[f'index_bytes{end}'] / 1e6:.1f}" for end in ("", "_computed")
        )
        body.append([f"`{row['method']}`", row["budget"] or "–", *figures, f"{row['new_tokens']:.0f}", held, computed])
    heads = ["method", "budget", "ended", "rep-4", "in a loop", "mean new tokens", "MB held: KV + importance keys", "computed"]
    return table(heads, body)


def _paired(row: Row, key: str) -> str:
    value, interval = f"{row[key]:.1%}", row[f"{key}_difference_interval"]
    if row["budget"] is None or interval is None:
        return value
    return f"{value} ({row[f'{key}_difference']:+.1%}, {interval[0]:+.1%} to {interval[1]:+.1%})"


SPEED_CELLS = ("smollm2-int4", "smollm2-bf16", "smollm2-int8", "random-1b-int4", "random-1b-bf16")
SPEED_TITLES = {
    "smollm2-int4": "SmolLM2-135M, the GGUF's own 4-bit blocks",
    "smollm2-bf16": "SmolLM2-135M, bfloat16",
    "smollm2-int8": "SmolLM2-135M, 8 bits",
    "random-1b-int4": "a Llama of 1.2 billion random weights, 4 bits, random cache",
    "random-1b-bf16": "a Llama of 1.2 billion random weights, bfloat16, random cache",
}


def speed_result(cell: str) -> dict[str, Any] | None:
    """A result of `benchmarks.speed`; None if there is none."""
    path = RESULTS / f"speed-{cell}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def speed_cells(result: dict[str, Any], threads: int, methods: tuple[str, ...]) -> str:
    """Milliseconds a token against the context; in brackets how many times as fast as llama.cpp and as own dense, and the bandwidth's share."""
    found = {
        (row["runtime"], row["select"], row["context"]): row for row in result["rows"] if row["threads"] == threads
    }
    contexts = sorted({context for _, _, context in found})
    rival = any(runtime == "llama.cpp" for runtime, _, _ in found)
    body = []
    for context in contexts:
        dense = found["native", "dense", context]
        line = [f"{context:,}"]
        other = found.get(("llama.cpp", "dense", context))
        if rival:
            line.append(f"{other['ms_per_token']:.1f}" if other else "–")
        for method in methods:
            row = found.get(("native", method, context))
            if row is None:
                line.append("–")
                continue
            times = [f"{other['ms_per_token'] / row['ms_per_token']:.2f} ×"] if other else []
            times += [f"{dense['ms_per_token'] / row['ms_per_token']:.2f} × dense"] if method != "dense" else []
            share = f"{row['bandwidth_share']:.0%}"
            line.append(f"{row['ms_per_token']:.2f} ({', '.join([*times, share])})")
        body.append(line)
    names = ["dense" if method == "dense" else f"`{method}` 1/8" for method in methods]
    return table(["tokens in the cache", *(["llama.cpp, ms"] if rival else []), *names], body)


def speed_front() -> str:
    """The table of README.md, and what it was measured on."""
    result = speed_result("smollm2-int4")
    if result is None:
        return ""
    threads = min(row["threads"] for row in result["rows"])
    return "\n".join(
        [
            f"{SPEED_TITLES['smollm2-int4']}, {_machine(result)}, {threads} thread: milliseconds a token, the median, all taking turns in",
            "one run. In brackets: times as fast as llama.cpp on the same file, times as fast as our own dense decoding, and the share of",
            f"the bandwidth at which {threads} thread reads memory ({result['bandwidth'][str(threads)] / 1e9:.1f} GB/s):\n",
            speed_cells(result, threads, ("dense", "foresight", "lowrank", "quest", "streaming")),
            *quality_front(),
        ]
    )


def quality_front() -> list[str]:
    """What the native decoder's rounding and choices cost, measured by its own steps."""
    found = {n: RESULTS / f"native-quality-{n}.json" for n in (1024, 2048, 8192)}
    found = {n: json.loads(path.read_text(encoding="utf-8")) for n, path in found.items() if path.exists()}
    found = {n: result for n, result in found.items() if result.get("rows")}
    if not found:
        return []
    wanted = {
        ("int4 dense", "bf16 dense"): "4-bit blocks less bfloat16, dense",
        ("own int4 dense", "bf16 dense"): "4 bits rounded by this package less bfloat16, dense",
        ("int4 foresight", "int4 dense"): "`foresight` 1/8 less dense, the same weights",
        ("int4 lowrank", "int4 dense"): "`lowrank` 1/8 less dense, the same weights",
        ("int4 foresight pages 0.25", "int4 dense"): "`foresight` 1/8 with `--pages 16`",
        ("int4 lowrank pages 0.25", "int4 dense"): "`lowrank` 1/8 with `--pages 16`",
    }
    body = []
    for key, title in wanted.items():
        line = [title]
        for result in found.values():
            row = next((row for row in result.get("rows", ()) if (row["what"], row["against"]) == key), None)
            line.append(delta(row) if row else "–")
        body.append(line)
    heads = [f"{n:,} ({len(result['chunks'])} chunks)" for n, result in found.items()]
    title = "\nThe loss of the same model by real decode steps, raw WikiText-2 test, nats a token:\n"
    return [title, table(["rise of the loss", *heads], body)]


def speed_all() -> str:
    """Tables of benchmarks/README.md: every cell at every number of threads."""
    parts = []
    for cell in SPEED_CELLS:
        if (result := speed_result(cell)) is None:
            continue
        selects = [row["select"] for row in result["rows"] if row["runtime"] == "native"]
        for threads in sorted({row["threads"] for row in result["rows"]}):
            read = result["bandwidth"][str(threads)] / 1e9
            title = f"{SPEED_TITLES[cell]}; {_machine(result)}; {threads} thread{'' if threads == 1 else 's'}, {read:.1f} GB/s:\n"
            parts += [title, speed_cells(result, threads, tuple(dict.fromkeys(selects)))]
    return "\n".join(parts)


def _machine(result: dict[str, Any]) -> str:
    return f"{result.get('cpu') or 'unknown processor'} ({result['isa']}, {result['cores']} cores)"


def front() -> str:
    """The table of README.md."""
    return "\n".join(
        [
            "SmolLM2-135M-Instruct, raw WikiText-2 test, 64 chunks of 1,024 tokens, the last 256 positions of each scored, layer 0",
            "dense, predictors trained on other text (the articles and manual pages that come with the package). Δ is the rise of the",
            "loss over dense attention, in nats a token:\n",
            methods_table({**rows("butler-v1"), **rows("main")}),
        ]
    )


def selection() -> str:
    """Tables of benchmarks/README.md beside that of README.md: other lengths and texts, bytes, another model."""
    return "\n".join(
        [
            elsewhere_table(),
            "Bytes at 1/8 against dense:\n",
            bytes_table(),
            "Gemma 3 270M (4-bit weights), whose layers attend over the whole context in 3 of 18, on the same text:\n",
            methods_table(rows("gemma")),
        ]
    )


def bench() -> str:
    """Tables of benchmarks/README.md."""
    parts = [paper_table()]
    for name, title in (("paper", "SmolLM2-135M"), ("gemma-paper", "Gemma 3 270M")):
        if rows(name):
            parts += [f"All budgets, {title}:\n", paper_budgets_table(name)]
    return "\n".join(parts)


def generation() -> str:
    """Tables of long generation in benchmarks/README.md."""
    titles = {
        "long-generation": "Sampled at temperature 0.7, on an H100:\n",
        "long-generation-quarter": "Sampled at temperature 0.7 with twice the budget, on two CPU cores (other random numbers):\n",
        "long-generation-greedy": "Greedy:\n",
    }
    found = [name for name in titles if (RESULTS / f"{name}.json").exists()]
    return "\n".join(part for name in found for part in (titles[name], generation_table(name)))


def written(text: str, mark: str, content: str) -> str:
    """`text` with what stands between `<!-- mark -->` and `<!-- /mark -->` replaced."""
    block = f"<!-- {mark} -->\n{content.strip()}\n<!-- /{mark} -->"
    return re.sub(rf"<!-- {mark} -->.*?<!-- /{mark} -->", lambda _: block, text, flags=re.S)


def filled(folder: str, tables: dict[str, str]) -> str:
    """The page of a folder with its tables."""
    text = (HERE / folder / "README.md").read_text(encoding="utf-8")
    for mark, content in tables.items():
        text = written(text, mark, content)
    return text


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    readme, bench_page = HERE.parent / "README.md", HERE / "README.md"
    return {
        readme: written(written(readme.read_text(encoding="utf-8"), "figures", front()), "speed", speed_front()),
        HERE / "contextual_sparsity" / "README.md": filled("contextual_sparsity", tables()),
        HERE / "token_importance" / "README.md": filled("token_importance", token_tables()),
        HERE / "serving" / "README.md": filled("serving", {mark: make() for mark, make in SERVING_TABLES.items()}),
        HERE / "activation_sparsity" / "README.md": filled("activation_sparsity", activation_tables()),
        bench_page: filled("", {"selection": selection(), "settings": settings_table(), "paper": bench(), "generation": generation(),
                                "speed": speed_all()}),  # fmt: skip
    }


def main() -> int:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
