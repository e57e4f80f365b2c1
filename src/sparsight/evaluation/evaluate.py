"""Compare selectors on text: perplexity, recall, bytes, with intervals; one row a method and budget."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..errors import BudgetError, ConfigError, SparsightError, TextError
from ..models import LoadedModel
from ..runtime import Budget, Plan
from ..tokens import Selector
from ..tokens.pretrained import resolve
from ..training.text import Document, chunks, hash_documents, overlap, token_stream
from .bytes import bytes_per_token, state_fraction
from .intervals import clustered_mean
from .recall import RecallProbe, recall_figures
from .results import ResultFile
from .scoring import Chunk, Scorer

FORMAT = 1
KNOWN_TEXT = 0.01
"""Share of scored text that may be known from training before evaluation is refused."""

Progress = Callable[[int, int, str], None]


class GateError(SparsightError):
    """The order oracle >= method >= random does not hold: the harness or the method is broken."""


def evaluate(
    loaded: LoadedModel,
    specs: Sequence[str],
    documents: Sequence[Document],
    length: int = 1024,
    count: int = 64,
    budgets: Sequence[Budget | str] = ("1/8",),
    *,
    seed: int = 0,
    scored: int = 256,
    sinks: int = 4,
    window: int = 32,
    allow_trained_text: bool = False,
    result: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the last positions of evenly spread chunks, dense and under each selector, and measure what each chooses.

    Parameters
    ----------
    loaded : LoadedModel
    specs : sequence of str
        `NAME` or `NAME=ARTIFACT` (`tokens.pretrained.resolve`); "dense" is always there.
    documents : sequence of Document
    length : int
        Tokens a chunk.
    count : int
        Chunks.
    budgets : sequence of Budget or str
        Each means a constant number of tokens, the fraction of `length` rounded up.
    seed : int
        Of `random`.
    scored : int
        Last positions of a chunk that are scored, at most a quarter of it.
    sinks, window : int
        Tokens always read, counted inside the budget.
    allow_trained_text : bool
        Evaluate even on text that a predictor was trained on.
    result : path, optional
        Result file: reused if complete for the same configuration, resumed if partial.
    progress : callable, optional
        progress(chunks done, chunks, note)

    Returns
    -------
    dict
        "rows" (see `_row`), "gate" (attention mass of random and oracle at each budget), "configuration" and
        "configuration_hash".

    Raises
    ------
    BudgetError, ConfigError, TextError, ModelError, ArtifactError, StorageError
    GateError
        If the oracle keeps less attention mass than a method, or a method less than `random`.
    """
    budgets = [Budget.parse(b) for b in budgets]
    selectors = _selectors(loaded, specs, seed)
    tokens = {str(b): _tokens(b, length, selectors, sinks, window) for b in budgets}
    scored = min(scored, length // 4)
    pieces = cut(loaded, documents, length, count, scored)
    known = _refuse_known_text(selectors, pieces, allow_trained_text)
    file = ResultFile(
        result, _configuration(loaded, selectors, documents, length, count, tokens, seed, scored, sinks, window)
    )
    if (finished := file.finished()) is not None:
        check_gate(finished)
        return finished
    done = file.chunks_done()
    for i, piece in enumerate(pieces):
        if progress is not None:
            progress(len(done) if i not in done else i, len(pieces), piece.cluster)
        if i not in done:
            done[i] = _measure(loaded, selectors, piece, tokens, sinks, window)
            file.add(i, done[i])
    outcome = file.finish(
        {
            **_figures(loaded, selectors, [done[i] for i in range(len(pieces))], pieces, tokens),
            "trained_text_share": known,
            "versions": versions(),
        }
    )
    check_gate(outcome)
    return outcome


def cut(loaded: LoadedModel, documents: Sequence[Document], length: int, count: int, scored: int) -> list[Chunk]:
    """Evenly spread chunks of the documents' token stream; a chunk belongs to the document of its first scored token.

    Raises
    ------
    TextError
        If the text is too short, or `length` is over the model's context.
    """
    if not 8 <= length <= loaded.anatomy.context_length:
        raise TextError(
            f"length {length} is outside 8..{loaded.anatomy.context_length}, the context of {loaded.name}; change --length"
        )
    ids, owner = token_stream(documents, loaded.tokenizer)
    stream = torch.from_numpy(ids)
    return [
        Chunk(stream[s : s + length + 1], scored, documents[owner[s + length - scored]].name)
        for s in chunks(ids, length, count).tolist()
    ]


def versions() -> dict[str, str]:
    """Versions that the numbers depend on."""
    from .. import __version__

    known = {"python": platform.python_version(), "sparsight": __version__}
    return {**known, **{package: version(package) for package in ("torch", "transformers")}}


def _selectors(loaded: LoadedModel, specs: Sequence[str], seed: int) -> dict[str, Selector]:
    wanted = [spec for spec in specs if spec != "dense"]
    if duplicates := {spec for spec in wanted if wanted.count(spec) > 1}:
        raise ConfigError(f"--select names {', '.join(sorted(duplicates))} more than once; give each method once")
    seeded = {"random": f"random:seed={seed}"}
    return {spec: resolve(seeded.get(spec, spec), loaded) for spec in ("dense", *wanted)}


def _tokens(budget: Budget, length: int, selectors: dict[str, Selector], sinks: int, window: int) -> int:
    tokens = budget.at(length)
    if tokens < length:
        try:
            Plan(selectors["dense"], budget, sinks, window).check_room(tokens)
        except BudgetError as error:
            raise BudgetError(f"at length {length}, budget {budget}: {error}") from None
    return tokens


def _refuse_known_text(selectors: dict[str, Selector], pieces: list[Chunk], allowed: bool) -> dict[str, float]:
    shares = {}
    for name, selector in selectors.items():
        if (known := getattr(selector, "training_shingles", None)) is not None:
            shares[name] = sum(overlap(known, p.ids.numpy()) for p in pieces) / len(pieces)
            if shares[name] > KNOWN_TEXT and not allowed:
                raise TextError(
                    f"{shares[name]:.1%} of this text was used to train {name!r}; evaluate on other text, or say --allow-trained-text"
                )
    return shares


def _configuration(loaded, selectors, documents, length, count, tokens, seed, scored, sinks, window) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": loaded.name,
        "model_hash": loaded.fingerprint,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "data_hash": hash_documents(documents),
        "methods": {name: f"{_weights_hash(s)}{s.config}" for name, s in selectors.items()},
        "length": length,
        "chunks": count,
        "budgets": tokens,
        "seed": seed,
        "scored": scored,
        "sinks": sinks,
        "window": window,
    }


def _weights_hash(selector: Selector) -> str:
    artifact = getattr(selector, "artifact", None)
    return f"{artifact.sha256} " if artifact is not None else ""


def _measure(loaded, selectors, piece: Chunk, tokens: dict[str, int], sinks: int, window: int) -> dict[str, Any]:
    """One chunk: mean NLL dense and for each method and budget, and the sums of the recall probe."""
    scorer = Scorer(loaded, piece, sinks, window)
    selecting = sorted({t for t in tokens.values() if t < piece.length})
    probe = RecallProbe(loaded.anatomy, selectors, selecting, sinks, window) if selecting else None
    nll = {"dense": float(scorer.nll(observe=probe).mean())}
    for name, selector in selectors.items():
        for t in selecting:
            if selector.selects:
                nll[f"{name}|{t}"] = float(scorer.nll(selector, t).mean())
    return {"nll": nll, "recall": dict(probe.sums) if probe else {}}


def _figures(loaded, selectors, measured, pieces, tokens) -> dict[str, Any]:
    """The rows, and the gate's floor and ceiling at each budget."""
    sums: dict[str, float] = defaultdict(float)
    for chunk in measured:
        for key, value in chunk["recall"].items():
            sums[key] += value
    gate = {
        label: [recall_figures(sums, name, t)["mass_outside"] for name in ("random", "oracle")]
        for label, t in tokens.items()
        if t < pieces[0].length
    }
    rows = [
        _row(loaded, name, selector, label, t, measured, pieces, sums)
        for label, t in tokens.items()
        for name, selector in selectors.items()
    ]
    return {"rows": rows, "gate": gate}


def _row(loaded, name, selector, label, tokens, measured, pieces, sums) -> dict[str, Any]:
    """A row: method, budget, length, chunks, nll_delta and its 95 % interval (nats), recall figures, bytes, fractions."""
    length, anatomy = pieces[0].length, loaded.anatomy
    dense = [chunk["nll"]["dense"] for chunk in measured]
    nll = [chunk["nll"].get(f"{name}|{tokens}", chunk["nll"]["dense"]) for chunk in measured]
    delta, interval = clustered_mean([a - b for a, b in zip(nll, dense, strict=True)], [p.cluster for p in pieces])
    parts = bytes_per_token(anatomy, selector, tokens, length)
    return {
        "method": name,
        "budget": label,
        "tokens": tokens if selector.selects else length,
        "length": length,
        "chunks": len(pieces),
        "clusters": len({p.cluster for p in pieces}),
        "nll": sum(nll) / len(nll),
        "perplexity": math.exp(sum(nll) / len(nll)),
        "nll_delta": delta,
        "nll_delta_ci": list(interval) if interval else None,
        **recall_figures(sums, name, tokens),
        "bytes_per_token": parts["total"],
        "bytes": parts,
        "state_fraction": state_fraction(anatomy, selector, length),
        "parameters_fraction": selector.parameter_count() / sum(p.numel() for p in loaded.model.parameters()),
        "deployable": selector.deployable,
    }


def check_gate(result: dict[str, Any]) -> None:
    """Raise `GateError` unless oracle >= every method >= random in attention mass, at each budget.

    Both are measured whether or not they are among the methods asked for. A hundredth of slack towards `random` allows for a method that
    is as good as chance.
    """
    for row in result["rows"]:
        if row["mass_outside"] is None:
            continue
        floor, ceiling = result["gate"][row["budget"]]
        if not floor - 0.01 <= row["mass_outside"] <= ceiling + 1e-6:
            raise GateError(
                f"at budget {row['budget']} {row['method']!r} keeps {row['mass_outside']:.4f} of the attention mass, "
                f"outside random {floor:.4f} .. oracle {ceiling:.4f}; the result file is kept, but do not use it"
            )
