"""Result files for tests: small, and as evaluate and bench speed write them."""

import copy
import json
import math
from pathlib import Path
from typing import Any

from sparsight.evaluation.intervals import clustered_mean
from sparsight.evaluation.results import configuration_hash

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CLUSTERS = ["a.txt#one", "a.txt#one", "a.txt#two", "a.txt#three"]
DENSE = [2.5, 2.75, 3.0, 2.25]
WEIGHTS = 1e8
VERSIONS = {"python": "3.11.7", "sparsight": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}
METHODS = {
    "dense": (0.0, "DenseConfig()", 1.0, True),
    "oracle": (0.01, "OracleConfig(reduction='softmax-sum')", 0.2, False),
    "lowrank": (0.02, "abc123 LowRankConfig(rank=16)", 0.25, True),
    "quest": (0.5, "QuestConfig(page_size=16)", 0.3, True),
}
"""Rise of the loss at 1/8, settings, share of the KV cache read, and whether it is deployable."""


def token_result(methods: dict[str, tuple] | None = None, heads: bool = False, **configuration: Any) -> dict[str, Any]:
    """A result of `evaluate --select` at budgets 1/4 and 1/8."""
    methods = methods or METHODS
    stated = {
        "format": 2, "model": "tiny", "model_hash": "0" * 64, "dtype": "float32", "data_hash": "1" * 64,
        "methods": {name: settings for name, (_, settings, _, _) in methods.items()}, "length": 256, "chunks": len(DENSE),
        "budgets": {"1/4": 64, "1/8": 32}, "seed": 0, "scored": 64, "sinks": 4, "window": 32, **configuration,
    }  # fmt: skip
    rows, losses = [], {"dense": DENSE}
    for budget, scale in (("1/4", 0.5), ("1/8", 1.0)):
        for name, (rise, _, share, deployable) in methods.items():
            nll = [loss + scale * rise * (1 + 0.25 * i) for i, loss in enumerate(DENSE)]
            if name != "dense":
                losses[f"{name}|{budget}"] = nll
            delta, ends = clustered_mean([a - b for a, b in zip(nll, DENSE, strict=True)], CLUSTERS)
            parts = {"weights": WEIGHTS, "kv": 1e7 * share * (2 - scale if name != "dense" else 1), "index": 0.0, "predictor": 0.0}
            mass = None if name == "dense" else 0.9 - rise
            row = {
                "method": name, "budget": budget, "tokens": 32, "share_read": share, "length": 256, "chunks": len(DENSE), "clusters": 3,
                "nll": sum(nll) / len(nll), "perplexity": math.exp(sum(nll) / len(nll)), "nll_delta": delta, "nll_delta_ci": list(ends),
                "mass_outside": mass, "mass_of_oracle": mass, "bytes_per_token": sum(parts.values()),
                "bytes": {**parts, "total": sum(parts.values())},
                "deployable": deployable,
            }  # fmt: skip
            if heads:
                row["mass_by_head"] = None if mass is None else [None, [mass, mass / 2], [1.0, 0.0]]
            rows.append(row)
    result = {"rows": rows, "gate": {"1/4": [0.1, 0.95], "1/8": [0.1, 0.95]}, "losses": losses, "clusters": CLUSTERS}
    return {"configuration_hash": configuration_hash(stated), "configuration": stated, **result, "versions": VERSIONS}


def rehashed(result: dict[str, Any]) -> dict[str, Any]:
    """With the hash that its configuration now has."""
    return {**result, "configuration_hash": configuration_hash(result["configuration"])}


def changed(result: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """A copy in which one thing is another."""
    result = copy.deepcopy(result)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return result


def write(path: Path, content: Any) -> Path:
    """JSON, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


WRITTEN_ANSWERS = {
    "model": "tiny", "model_hash": "0" * 64,
    "rows": [
        {"method": name, "budget": budget, "task": "niah", "metric": "score", "value": value, "stderr": 0.05,
         "items": 10, "truncated": 0, "lm_eval": "0.4.13"}
        for name, budget, value in (("dense", "full", 0.9), ("quest", "1/8", 0.7))
    ],
}  # fmt: skip
REAL = {
    "tokens": BENCHMARKS / "results" / "gemma.json",
    "units": BENCHMARKS / "contextual_sparsity" / "results" / "sweep.json",
    "activations": BENCHMARKS / "activation_sparsity" / "results" / "gelu.json",
    "tasks": BENCHMARKS / "token_importance" / "results" / "needle.json",
    "choice": BENCHMARKS / "contextual_sparsity" / "results" / "tasks-5-shot.json",
    "speed": BENCHMARKS / "results" / "speed-smollm2-int4.json",
}
"""A real file of each kind that the repository has."""
