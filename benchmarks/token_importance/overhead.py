"""What KVCrush adds to a decoded token: processor time in its choices less that of its base's, over the time of a step.

    python -m benchmarks.token_importance.overhead

One thread, Hugging Face graph, 2,048 tokens in front, budget 1/8; the candidates take turns, and of three rounds the median is kept.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.token_importance.tables import RESULTS
from sparsight.artifacts import write_atomically
from sparsight.evaluation.evaluate import versions
from sparsight.models import load
from sparsight.ops.native import library
from sparsight.runtime import Budget, Plan, apply
from sparsight.tokens.pretrained import resolve
from sparsight.training.shipped_text import shipped_documents

PAIRS = (("snapkv", "kvcrush+snapkv"), ("h2o", "kvcrush+h2o"))
LENGTH, BUDGET, STEPS, ROUNDS = 2048, 256, 64, 3


def seconds(loaded, spec: str, ids: torch.Tensor) -> tuple[float, float]:
    """Processor seconds a decoded token: in the choice of rows, and in all."""
    evictor, spent = resolve(spec, loaded), 0.0
    choose = evictor.keep

    def timed(*args):
        nonlocal spent
        started = time.process_time()
        try:
            return choose(*args)
        finally:
            spent += time.process_time() - started

    evictor.keep = timed
    with torch.no_grad(), apply(loaded, Plan(evictor, Budget(BUDGET))):
        cache = loaded.model(ids[:, :LENGTH], use_cache=True, logits_to_keep=1).past_key_values
        spent, started = 0.0, time.process_time()
        for i in range(LENGTH, LENGTH + STEPS):
            loaded.model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
    return spent / STEPS, (time.process_time() - started) / STEPS


def main(out: Path = RESULTS / "overhead.json") -> int:
    """Measure and store."""
    torch.set_num_threads(1)
    loaded = load("smollm2-135m", dtype=torch.bfloat16)
    text = "\n".join(document.text for document in shipped_documents()[:40])
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids[:, : LENGTH + STEPS]
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for spec in (spec for pair in PAIRS for spec in pair):
            found.setdefault(spec, []).append(seconds(loaded, spec, ids))
    median = {spec: [statistics.median(column) for column in zip(*rounds, strict=True)] for spec, rounds in found.items()}
    rows = [
        {"base": base, "method": spec, "choice_ms": 1e3 * median[spec][0], "base_choice_ms": 1e3 * median[base][0],
         "step_ms": 1e3 * median[spec][1], "overhead": (median[spec][0] - median[base][0]) / median[base][1]}
        for base, spec in PAIRS
    ]  # fmt: skip
    result = {"rows": rows, "length": LENGTH, "budget": BUDGET, "native": library() is not None, "versions": versions()}
    write_atomically(out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
