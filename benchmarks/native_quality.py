"""What the native decoder's rounding and selection cost in quality: loss of text by real decode steps.

    python -m benchmarks.native_quality                     # SmolLM2-135M on raw WikiText-2 test; resumes after a kill
    python -m benchmarks.native_quality --lengths 1024 --text ../shared/data/wikitext-2/valid.txt --out /tmp/valid

For each length: dense in bfloat16; the GGUF's own 4-bit blocks, dense and under each method; and 4 bits rounded by this package from the
bfloat16 weights. Results go to `benchmarks/results/native-quality-LENGTH.json`, a chunk at a time; finished chunks are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from sparsight import __version__
from sparsight.artifacts.files import write_atomically
from sparsight.errors import SparsightError
from sparsight.evaluation import Protocol, clustered_mean
from sparsight.evaluation.protocol import cut
from sparsight.evaluation.stepwise import stepwise_losses
from sparsight.models import load
from sparsight.runtime import Budget, Plan, Rule
from sparsight.runtime.decoder import Decoder
from sparsight.tokens.pretrained import resolve
from sparsight.training import read_documents

RESULTS = Path(__file__).parent / "results"
TEXT = Path("../shared/data/wikitext-2/test.raw.txt")
CHUNKS = {1024: 12, 2048: 6, 8192: 2}
SCORED = 128
METHODS = ("foresight", "lowrank")


def main() -> int:
    """Run what is missing and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(CHUNKS))
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--budget", default="1/8")
    parser.add_argument("--pages", nargs="*", type=float, default=[0.25], help="page shares to try, pages of 16 tokens")
    parser.add_argument("--only-selection", action="store_true", help="leave out the other weights")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    try:
        loaded = load(args.model, dtype=torch.bfloat16)
        for length in args.lengths:
            run(loaded, length, args)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(loaded, length: int, args) -> None:
    """All chunks of one length."""
    path = args.out / f"native-quality-{length}.json"
    chunks = cut(loaded, read_documents([args.text]), replace(Protocol(length, CHUNKS.get(length, 8)), scored=SCORED))
    config = {
        "model": loaded.name, "model_hash": loaded.fingerprint, "text": "/".join(args.text.parts[-2:]), "length": length,
        "chunks": len(chunks), "scored": SCORED, "budget": args.budget, "page_shares": args.pages, "version": __version__,
    }  # fmt: skip
    result = json.loads(path.read_text()) if path.exists() else {"config": config, "chunks": []}
    if result["config"] != config:
        raise SparsightError(f"'{path}' is of other settings; move it away")
    plans: dict[str, Plan | None] = {"dense": None}
    for name in METHODS:
        selector, budget = resolve(name, loaded), Budget.parse(args.budget)
        plans[name] = Plan(selector, budget)
        plans |= {f"{name} pages {share:g}": Plan(selector, budget, Rule(pages=16, page_share=share)) for share in args.pages}
    own = replace(loaded, blocks=None, kept={})
    decoders = {"int4": (Decoder(loaded, "int4", args.threads), plans)}
    if not args.only_selection:
        decoders["bf16"] = (Decoder(loaded, "bf16", args.threads), {"dense": None})
        decoders["own int4"] = (Decoder(own, "int4", args.threads), {"dense": None})
    started = time.monotonic()
    for i, chunk in enumerate(chunks[len(result["chunks"]) :], len(result["chunks"])):
        losses = {"cluster": chunk.cluster}
        for format, (decoder, some) in decoders.items():
            for name, values in stepwise_losses(decoder, chunk, some).items():
                losses[f"{format} {name}"] = sum(values) / len(values)
        result["chunks"].append(losses)
        write_atomically(path, json.dumps(result, indent=1) + "\n")
        print(f"{length}: {i + 1}/{len(chunks)} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    result["rows"] = summarise(result)
    write_atomically(path, json.dumps(result, indent=1) + "\n")


def summarise(result: dict) -> list[dict]:
    """What each loses against the dense form of the same weights, and of bfloat16, in nats a token; it is printed too."""
    chunks, clusters, rows = result["chunks"], [chunk["cluster"] for chunk in result["chunks"]], []
    print(f"{result['config']['length']} tokens, {len(chunks)} chunks")
    for name in (key for key in chunks[0] if key != "cluster"):
        for other in ("int4 dense", "bf16 dense"):
            if other in chunks[0] and other != name:
                delta, interval = clustered_mean([chunk[name] - chunk[other] for chunk in chunks], clusters)
                rows.append({"what": name, "against": other, "nll_delta": delta, "nll_delta_ci": list(interval) if interval else None})
                print(f"  {name:28s} less {other}: {delta:+.4f}" + (f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else ""))
    return rows


if __name__ == "__main__":
    sys.exit(main())
