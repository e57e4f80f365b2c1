"""What the server costs beside `generate`, and what it does under load: the figures of `benchmarks/serving/README.md`.

    python -m benchmarks.serving                       # all that is missing, about fifteen minutes
    python -m benchmarks.serving --only speed --again

The two take turns, in processes of their own, so that what else the machine does falls on both. Results go to `results/NAME.json`; a finished
one is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch
from rich.console import Console

from benchmarks.browser import chromium
from sparsight.artifacts import write_atomically
from sparsight.cli.progress import bar
from sparsight.errors import SparsightError
from sparsight.models import LoadedModel, load
from sparsight.runtime import Budget, Plan, generate, kept_decoder
from sparsight.tokens.pretrained import resolve

from .process import serving
from .stress import Case, Stress

RESULTS = Path(__file__).parent / "results"
MODEL, THREADS = "smollm2-135m", 2
PROMPTS, NEW, ROUNDS = (64, 512), 96, 12
ROWS, STEPS = (1, 2, 4, 8), 30
CLIENTS, REQUESTS, MEMORY_REQUESTS = 8, 50, 1000
READING_TOKENS, READING_NEW = 2000, 24


def document(loaded: LoadedModel, tokens: int) -> str:
    """The beginning of the demo's document, of so many tokens or a few more."""
    ids = loaded.tokenizer((files("sparsight") / "demo" / "document.txt").read_text(encoding="utf-8"))["input_ids"]
    return loaded.tokenizer.decode(ids[:tokens])


def speed(loaded: LoadedModel, update: Callable[[int, int], None]) -> dict[str, Any]:
    """First token and steady rate for one client, of the server and of `generate`, in turns."""
    rows = []
    with serving(["--model", MODEL, "--threads", str(THREADS)]) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        for at, (tokens, select) in enumerate((tokens, select) for tokens in PROMPTS for select in ("dense", "foresight")):
            prompt = document(loaded, tokens)
            plan = None if select == "dense" else Plan(resolve(select, loaded), Budget.parse("1/8"))
            found: dict[str, list[float]] = {name: [] for name in ("first, generate", "first, server", "rate, generate", "rate, server")}
            for turn in range(ROUNDS):
                first, rate, text = of_generate(loaded, prompt, plan)
                served_first, served_rate, served_text = of_server(client, prompt, select)
                if text != served_text:
                    raise RuntimeError(f"the server answered {served_text!r}, generate {text!r}")
                if turn:  # the first warms up
                    for name, value in zip(found, (first, served_first, rate, served_rate), strict=True):
                        found[name].append(value)
                update(at * ROUNDS + turn + 1, 2 * len(PROMPTS) * ROUNDS)
            pairs = {name: list(zip(found[f"{name}, server"], found[f"{name}, generate"], strict=True)) for name in ("first", "rate")}
            ratios = {f"{name}, ratio": statistics.median(a / b for a, b in pair) for name, pair in pairs.items()}
            medians = {name: statistics.median(values) for name, values in found.items()}
            rows.append({"prompt_tokens": tokens, "select": select, **medians, **ratios, "all": found})
    return {"rows": rows, "new_tokens": NEW, "rounds": ROUNDS - 1}


def of_generate(loaded: LoadedModel, prompt: str, plan: Plan | None) -> tuple[float, float, str]:
    """Seconds to the first token, tokens a second behind it, and the text."""
    first = generate(loaded, prompt, plan, max_new_tokens=1, threads=THREADS).seconds
    made = generate(loaded, prompt, plan, max_new_tokens=NEW, threads=THREADS, stream=lambda piece: None)
    return first, (NEW - 1) / (made.seconds - first), made.text


def of_server(client: httpx.Client, prompt: str, select: str) -> tuple[float, float, str]:
    """The same of the server, as a client sees it: from the request on, by what arrives."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": NEW, "temperature": 0, "stream": True, "select": select}
    text, times = "", []
    began = time.perf_counter()
    with client.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                if piece := json.loads(line[6:])["choices"][0]["text"]:
                    text += piece
                    times.append(time.perf_counter())
    # A token may bring no text of its own: all of them have come by the last piece.
    return times[0] - began, (NEW - 1) / (times[-1] - times[0]), text


def batch(loaded: LoadedModel, update: Callable[[int, int], None]) -> dict[str, Any]:
    """A step of several rows, against as many steps of one."""
    ids, rows = loaded.tokenizer(document(loaded, 1100))["input_ids"][:1024], []
    cells = [(threads, tokens, select) for threads in (1, THREADS) for tokens in (128, 1024) for select in (None, "foresight")]
    for at, (threads, tokens, select) in enumerate(cells):
        decoder = kept_decoder(loaded, None, threads)
        plan = None if select is None else Plan(resolve(select, loaded), Budget.parse("1/8"))
        sequences = [decoder.new_sequence() for _ in range(max(ROWS))]
        for sequence in sequences:
            decoder.prefill(sequence, ids[:tokens], tokens + STEPS * len(ROWS))
        seconds: dict[int, list[float]] = {count: [] for count in ROWS}
        for _ in range(STEPS):
            for count in ROWS:
                began = time.perf_counter()
                decoder.step(sequences[:count], [5] * count, plan)
                seconds[count].append(time.perf_counter() - began)
        times = {str(count): 1e3 * statistics.median(values) for count, values in seconds.items()}
        rows.append({"threads": threads, "context": tokens, "select": select or "dense", "ms": times})
        update(at + 1, len(cells))
    return {"rows": rows, "steps": STEPS}


def cases(loaded: LoadedModel, count: int = 24) -> list[Case]:
    """Requests of many kinds, with what `generate` gives for them."""
    chance, made = random.Random(1), []
    for seed in range(count):
        select = chance.choice(["dense", "foresight", "lowrank", "quest"])
        own = {"select": select} if select == "dense" else {"select": select, "budget": chance.choice(["1/8", "1/4", "80"])}
        prompt, new, temperature = document(loaded, chance.randint(8, 300)), chance.randint(2, 24), chance.choice([0, 0.7, 1.0])
        plan = None if select == "dense" else Plan(resolve(select, loaded), Budget.parse(own["budget"]))
        text = generate(loaded, prompt, plan, max_new_tokens=new, temperature=temperature, seed=seed, threads=THREADS).text
        made.append(Case({"model": MODEL, "prompt": prompt, "max_tokens": new, "temperature": temperature, "seed": seed, **own}, text))
    return made


def stress(loaded: LoadedModel, update: Callable[[int, int], None]) -> dict[str, Any]:
    """Eight clients that ask well and badly and go away; the same with SIGTERM in the middle; memory over a thousand requests more."""
    asked = cases(loaded)
    arguments = ["--model", MODEL, "--threads", str(THREADS)]
    with serving(arguments) as server:
        first = Stress(server, asked).run(CLIENTS, REQUESTS)
        before = server.memory
        update(1, 3)
        second = Stress(server, asked).run(CLIENTS, MEMORY_REQUESTS // CLIENTS, seed=100)
        after = server.memory
        status, said = server.stop()
    update(2, 3)
    with serving(arguments) as server:
        stopped = Stress(server, asked, stop_after=CLIENTS * REQUESTS // 2).run(CLIENTS, REQUESTS)
        stopped_status, stopped_said = server.stop()
    update(3, 3)
    return {
        "rows": [
            {"run": "400 requests", "answers": dict(first.answers), "wrong": first.wrong},
            {"run": "1,000 requests more", "answers": dict(second.answers), "wrong": second.wrong, "log": said, "exit": status},
            {
                "run": "SIGTERM in the middle",
                "answers": dict(stopped.answers),
                "wrong": stopped.wrong,
                "log": stopped_said,
                "exit": stopped_status,
            },
        ],
        "memory_before": before,
        "memory_after": after,
        "memory_ratio": after / before,
    }


def reading(loaded: LoadedModel, update: Callable[[int, int], None]) -> dict[str, Any]:
    """Milliseconds until the server has given what a token read, at a context of 2,000 tokens."""
    rows = []
    with serving(["--model", MODEL, "--threads", str(THREADS)]) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        for at, select in enumerate(("dense", "foresight")):
            body = {"model": MODEL, "prompt": document(loaded, READING_TOKENS), "max_tokens": READING_NEW, "temperature": 0, "select": select}
            name = client.post("/v1/completions", json={**body, "reading": True}).raise_for_status().json()["id"]
            times = [asking(client, f"/v1/readings/{name}/{token}") for token in range(1, READING_NEW)]
            rows.append({"select": select, "ms": statistics.median(times), "first_ms": times[0], "slowest_ms": max(times)})
            update(at + 1, 2)
    return {"rows": rows, "context": READING_TOKENS}


def page(loaded: LoadedModel, update: Callable[[int, int], None]) -> dict[str, Any]:
    """Milliseconds from pointing at a token until what it read is on the screen, in headless Chromium."""
    rows = []
    with serving(["--model", MODEL, "--threads", str(THREADS), "--select", "foresight"]) as server, chromium() as browser:
        shown = browser.new_page()
        shown.goto(server.url)
        shown.wait_for_selector('body[data-state="ready"]')
        shown.fill("#prompt", document(loaded, READING_TOKENS))
        shown.fill("#tokens", str(READING_NEW))
        shown.click("#run")
        shown.wait_for_selector('body[data-state="ready"]', timeout=120_000)
        for at, side in enumerate(("dense", "sparse")):
            times = []
            for token in range(READING_NEW):
                shown.hover(f"#{side}-{token}")
                shown.wait_for_selector(f'body[data-pointed="{side}-{token}"]')
                times.append(float(shown.get_attribute("body", "data-milliseconds")))
            rows.append({"side": side, "ms": statistics.median(times), "first_ms": times[0], "slowest_ms": max(times)})
            update(at + 1, 2)
    return {"rows": rows, "context": READING_TOKENS}


def asking(client: httpx.Client, path: str) -> float:
    """Milliseconds that a request takes."""
    began = time.perf_counter()
    client.get(path).raise_for_status().json()
    return 1e3 * (time.perf_counter() - began)


MEASURED: dict[str, Callable] = {"batch": batch, "speed": speed, "reading": reading, "page": page, "stress": stress}


def main() -> int:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=tuple(MEASURED), default=list(MEASURED))
    parser.add_argument("--again", action="store_true", help="measure what is there too")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    loaded, console = load(MODEL, dtype=torch.bfloat16), Console()
    for name in args.only:
        place = RESULTS / f"{name}.json"
        if not place.exists() or args.again:
            with bar(name) as update:
                result = MEASURED[name](loaded, lambda done, total, update=update: update(done, total, ""))
            head = {"model": MODEL, "model_hash": loaded.fingerprint, "weights": "int4", "threads": THREADS}
            write_atomically(place, json.dumps({**head, **result}, indent=1).encode() + b"\n")
        shown = json.loads(place.read_text(encoding="utf-8"))
        for row in shown["rows"]:
            console.print(name, {key: value for key, value in row.items() if key != "all"})
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except SparsightError as error:
        raise SystemExit(f"error: {error}") from None
