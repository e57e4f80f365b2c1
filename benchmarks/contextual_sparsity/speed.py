"""How fast a token is decoded with heads and neurons left out: the native decoder, and the Hugging Face graph sliced after the prompt.

    python -m benchmarks.contextual_sparsity.speed --predictors DIR

On an idle machine; everything takes turns in one run. Results go to `results/speed.json` and `results/graph.json`; a finished one is kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers.cache_utils import DynamicCache

from sparsight.artifacts import write_atomically
from sparsight.errors import SparsightError
from sparsight.evaluation.speed import _cpu, measure_speed, write_result
from sparsight.evaluation.speed_grid import SpeedGrid
from sparsight.models import load
from sparsight.runtime.units import UnitPlan, apply_units
from sparsight.training.shipped_text import shipped_documents
from sparsight.training.text import token_stream
from sparsight.units import Sparsity
from sparsight.units.pretrained import resolve_units

RESULTS = Path(__file__).parent / "results"
CONTEXT, STEPS, ROUNDS = 512, 6, 8
NATIVE = (
    ("gated", "gated", "neurons=0.5", None),
    ("gated, heads static", "gated", "heads=0.33,neurons=0.5", "static"),
    ("gated, heads dejavu", "gated", "heads=0.33,neurons=0.5", "dejavu-token"),
    ("gated, up first, no look, heads static", "gated-up-0", "heads=0.33,neurons=0.5", "static"),
    ("dejavu", "dejavu-token", "heads=0.33,neurons=0.5", None),
    ("shadow", "shadow-token", "heads=0.33,neurons=0.5", None),
    ("static", "static", "heads=0.33,neurons=0.5", None),
)
GRAPH = (
    ("prompt-l2", "neurons=0.5"),
    ("prompt-l2", "heads=0.33,neurons=0.5"),
    ("static", "heads=0.33,neurons=0.5"),
    ("prompt-l2", "neurons=0.7"),
)


def main() -> int:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictors", type=Path, required=True)
    args = parser.parse_args()
    try:
        loaded = load("smollm2-135m", dtype=torch.bfloat16)
        if not (RESULTS / "speed.json").exists():
            units = []
            for name, folder, sparsity, heads in NATIVE:
                method = resolve_units(str(args.predictors / folder), loaded)
                other = None if heads is None else resolve_units(str(args.predictors / heads), loaded)
                units.append((name, UnitPlan(method, Sparsity.parse(sparsity), heads=other)))
            grid = SpeedGrid(contexts=(CONTEXT,), threads=(1, 2), weights=("bf16",), units=tuple(units), repeats=5)
            write_result(RESULTS / "speed.json", measure_speed(loaded, grid, lambda done, total, note: None))
        if not (RESULTS / "graph.json").exists():
            graph(load("smollm2-135m", dtype=torch.float32), args.predictors)
    except SparsightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def graph(loaded, predictors: Path) -> None:
    """Time steps of the graph, dense and sliced, in turns; fp32, whose products of one row PyTorch computes fastest."""
    torch.set_num_threads(1)
    ids = torch.from_numpy(token_stream(shipped_documents()[:3], loaded.tokenizer)[0])[None, : CONTEXT + STEPS]
    plans = {("dense", None): None}
    for name, sparsity in GRAPH:
        units = resolve_units(str(predictors / name) if name == "static" else name, loaded)
        plans[name, sparsity] = UnitPlan(units, Sparsity.parse(sparsity))
    seconds: dict[tuple, list[float]] = {key: [] for key in plans}
    packing: dict[tuple, list[float]] = {key: [] for key in plans}
    for _ in range(ROUNDS):
        for key, plan in plans.items():
            if plan is None:
                with torch.no_grad():
                    seconds[key] += _steps(loaded, ids)
            else:
                with apply_units(loaded, plan) as run:
                    seconds[key] += _steps(loaded, ids)
                    packing[key].append(run.pack_seconds)
    dense = statistics.median(seconds["dense", None])
    rows = []
    for (name, sparsity), found in seconds.items():
        middle, pack = statistics.median(found), statistics.median(packing[name, sparsity] or [0])
        rows.append(
            {
                "units": name,
                "sparsity": sparsity,
                "ms_per_token": 1e3 * middle,
                "speedup": dense / middle,
                "pack_seconds": pack if sparsity else None,
                "break_even": pack / (dense - middle) if sparsity and middle < dense else None,
            }
        )
    told = {"cpu": _cpu(), "threads": 1, "dtype": "fp32", "context": CONTEXT, "steps": ROUNDS * (STEPS - 1), "model_hash": loaded.fingerprint}
    write_atomically(RESULTS / "graph.json", json.dumps({**told, "rows": rows}, indent=1) + "\n")


def _steps(loaded, ids: torch.Tensor) -> list[float]:
    """Seconds of steps behind a prompt; the first, which packs, is not among them."""
    cache = DynamicCache(config=loaded.model.config)
    loaded.model(ids[:, :CONTEXT], past_key_values=cache, use_cache=True, logits_to_keep=1)
    found = []
    for i in range(CONTEXT, CONTEXT + STEPS):
        start = time.perf_counter()
        loaded.model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
        found.append(time.perf_counter() - start)
    return found[1:]


if __name__ == "__main__":
    sys.exit(main())
