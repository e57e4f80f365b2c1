"""The tables of this folder's page from its result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def result(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body]) + "\n"


def speed() -> str:
    """First token and steady rate beside `generate`."""
    heads = ["prompt", "reads", "first token: `generate`", "server", "ratio", "tokens a second: `generate`", "server", "ratio"]
    body = []
    for row in result("speed")["rows"]:
        first = [f"{1e3 * row[f'first, {who}']:.0f} ms" for who in ("generate", "server")]
        rate = [f"{row[f'rate, {who}']:.0f}" for who in ("generate", "server")]
        body.append([f"{row['prompt_tokens']} tokens", _name(row), *first, f"{row['first, ratio']:.2f}", *rate, f"{row['rate, ratio']:.2f}"])
    return markdown(heads, body)


def batch() -> str:
    """A step of several rows."""
    found = result("batch")["rows"]
    counts = list(found[0]["ms"])
    heads = ["threads", "context", "reads", *(f"{count} row{'s' * (count != '1')}, ms" for count in counts), "a row of 4, against turns"]
    body = []
    for row in found:
        ms = row["ms"]
        times, share = [f"{ms[count]:.1f}" for count in counts], f"{ms['4'] / 4 / ms['1']:.2f}"
        body.append([str(row["threads"]), f"{row['context']:,}", _name(row), *times, share])
    return markdown(heads, body)


def stress() -> str:
    """What clients were answered under load."""
    found = result("stress")
    body = []
    for row in found["rows"]:
        answers = ", ".join(f"{name}: {count}" for name, count in sorted(row["answers"].items()))
        ended = f"{row['exit']}, {len(row['log'].splitlines())} lines" if "log" in row else "–"
        body.append([row["run"], answers, str(len(row["wrong"])), ended])
    before, after = (f"{found[name] / 1e6:.1f} MB" for name in ("memory_before", "memory_after"))
    memory = f"\nMemory of the process: {before} after the first run, {after} after the second ({found['memory_ratio'] - 1:+.1%}).\n"
    return markdown(["run", "answers", "wrong", "exit status, log"], body) + memory


def reading() -> str:
    """Until it is shown what a token read."""
    body = []
    for name, what, key in (("reading", "the server's answer", "select"), ("page", "on the screen", "side")):
        for row in result(name)["rows"]:
            body.append([what, row[key], *(f"{row[ms]:.0f}" for ms in ("ms", "first_ms", "slowest_ms"))])
    return markdown(["until", "", "median, ms", "first, ms", "slowest, ms"], body)


def _name(row: dict[str, Any]) -> str:
    return "all" if row["select"] == "dense" else f"`{row['select']}` 1/8"


TABLES = {"speed": speed, "batch": batch, "stress": stress, "reading": reading}
