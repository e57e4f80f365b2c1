"""Compare selectors on text: perplexity, recall, bytes, with intervals; one row a method and budget."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import BudgetError, ConfigError, SparsightError, TextError
from ..models import LoadedModel
from ..runtime import Budget
from ..runtime.plan import check_room
from ..tokens import Dense, Selector
from ..tokens.pretrained import resolve
from ..training.text import Document, hash_documents, overlap
from .bytes import bytes_kept, bytes_per_token, state_fraction
from .intervals import clustered_mean
from .protocol import PLAIN, Protocol, Rules, cut
from .recall import ByHead, RecallProbe, add_by_head, mass_by_head, recall_figures
from .results import ResultFile, checked_shard
from .scoring import Chunk, Scorer

FORMAT = 2
KNOWN_TEXT = 0.01
"""Share of scored text that may be known from training before evaluation is refused."""

Progress = Callable[[int, int, str], None]


class GateError(SparsightError):
    """The order oracle >= method >= random does not hold: the harness or the method is broken."""


def evaluate(
    loaded: LoadedModel,
    specs: Sequence[str] | Mapping[str, str],
    documents: Sequence[Document],
    protocol: Protocol | None = None,
    budgets: Sequence[Budget | str] = ("1/8",),
    *,
    seed: int = 0,
    index_dtype: str | None = None,
    allow_trained_text: bool = False,
    result: str | Path | None = None,
    progress: Progress | None = None,
    shard: tuple[int, int] | None = None,
    partial: bool = False,
) -> dict[str, Any] | None:
    """Score evenly spread chunks of text, dense and under each selector, and measure what each chooses.

    Parameters
    ----------
    loaded : LoadedModel
    specs : sequence of str, or mapping of str to str
        `NAME` or `NAME=ARTIFACT` (`tokens.pretrained.resolve`), by a name to call it if it is a mapping; "dense" is always there.
    documents : sequence of Document
    protocol : Protocol, optional
    budgets : sequence of Budget or str
        A fraction is of the chunk's length, rounded up; of what each row sees where the prefill is simulated.
    seed : int
        Of `random`.
    index_dtype : {"int8", "int4", "bf16"}, optional
        What importance keys are kept in, for all predictors, in place of their own setting.
    allow_trained_text : bool
        Evaluate even on text that a predictor was trained on.
    result : path, optional
        Result file: reused if complete for the same configuration, resumed if partial.
    progress : callable, optional
        progress(chunks done, chunks, note)
    shard : (int, int), optional
        (i, n): of n processes that share a result file this is number i, from 0, and scores every n-th chunk.
    partial : bool
        Score nothing: give the figures of the chunks that the result file's partial files hold so far, and write nothing.

    Returns
    -------
    dict, or None for a shard while chunks of others are missing
        "rows" (see `_row`), "gate" (attention mass of random and oracle at each budget; with thresholds the oracle has its own, and evictors
        are held against an oracle of the same allocation), "losses" (nats of each chunk, by "METHOD|BUDGET") with the "clusters" of the chunks
        for paired differences, "configuration" and "configuration_hash".

    Raises
    ------
    BudgetError, ConfigError, TextError, ModelError, ArtifactError, StorageError
    GateError
        If the oracle keeps less attention mass than a method, or a method less than `random`.
    """
    protocol = protocol or Protocol()
    budgets = {str(b): b for b in map(Budget.parse, budgets)}
    selectors = _selectors(loaded, specs, seed, index_dtype)
    tokens = {label: protocol.budget(budget) for label, budget in budgets.items()}
    _check_evictors(selectors, tokens, protocol)
    pieces = cut(loaded, documents, protocol)
    known = refuse_known_text(selectors, pieces, allow_trained_text)
    number, shards = checked_shard(shard, result)
    file = ResultFile(result, _configuration(loaded, selectors, documents, protocol, tokens, seed), number if shards > 1 else None)
    if (finished := file.finished()) is not None:
        check_gate(finished)
        return finished
    done = file.chunks_done()
    if partial:
        if not done:
            raise ConfigError(f"no chunk of this configuration is done in {file.partial.name}; run it without partial first")
        some = sorted(done)
        figures = _figures(loaded, selectors, [done[i] for i in some], [pieces[i] for i in some], tokens, protocol)
        check_gate(figures)
        return {"configuration": file.configuration, **figures, "versions": versions()}
    rules = Rules(loaded, selectors, budgets, protocol, progress) if len(done) < len(pieces) else None
    for i, piece in enumerate(pieces):
        if progress is not None:
            progress(len(done) if i not in done else i, len(pieces), piece.cluster)
        if i not in done and i % shards == number:
            done[i] = _measure(loaded, selectors, piece, tokens, rules)
            file.add(i, {"cluster": piece.cluster, **done[i]})
    if shards > 1 and len(done := file.chunks_done()) < len(pieces):
        return None
    outcome = file.finish(
        {
            **_figures(loaded, selectors, [done[i] for i in range(len(pieces))], pieces, tokens, protocol),
            "trained_text_share": known,
            "versions": versions(),
        }
    )
    check_gate(outcome)
    return outcome


def versions() -> dict[str, str]:
    """Versions that the numbers depend on."""
    from .. import __version__

    known = {"python": platform.python_version(), "sparsight": __version__}
    return {**known, **{package: version(package) for package in ("torch", "transformers")}}


def _selectors(loaded: LoadedModel, specs, seed: int, index_dtype: str | None) -> dict[str, Selector]:
    if not isinstance(specs, Mapping):
        wanted = [spec for spec in specs if spec != "dense"]
        if duplicates := {spec for spec in wanted if wanted.count(spec) > 1}:
            raise ConfigError(f"--select names {', '.join(sorted(duplicates))} more than once; give each method once")
        specs = {spec: spec for spec in wanted}
    seeded = {"random": f"random:seed={seed}"}
    every = {"dense": "dense", **specs}
    selectors = {name: resolve(seeded.get(spec, spec), loaded, index_dtype) for name, spec in every.items()}
    for name in ("dense", "oracle", "random"):
        if name in selectors and selectors[name].name != name:
            raise ConfigError(f"{name!r} is what the gate measures against; call the method {selectors[name].name!r} something else")
    return selectors


def refuse_known_text(methods: Mapping[str, Any], pieces: Sequence[Chunk], allowed: bool, use: str = "train") -> dict[str, float]:
    """Shares of a text that methods were made from, by their names; those that were made from none are left out.

    Raises
    ------
    TextError
        If a share is above `KNOWN_TEXT` and that is not allowed; `use` says what the text was used for.
    """
    shares = {}
    for name, method in methods.items():
        if (known := getattr(method, "training_shingles", None)) is not None:
            shares[name] = sum(overlap(known, p.ids.numpy()) for p in pieces) / len(pieces)
            if shares[name] > KNOWN_TEXT and not allowed:
                raise TextError(
                    f"{shares[name]:.1%} of this text was used to {use} {name!r}; evaluate on other text, or say --allow-trained-text"
                )
    return shares


def _configuration(loaded, selectors, documents, protocol, tokens, seed) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": loaded.name,
        "model_hash": loaded.fingerprint,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "data_hash": hash_documents(documents),
        "methods": {name: f"{_weights_hash(s)}{s.settings}" for name, s in selectors.items()},
        "length": protocol.length,
        "chunks": protocol.count,
        "budgets": {label: _stated_tokens(t, protocol) for label, t in tokens.items()},
        "seed": seed,
        "scored": protocol.rows,
        **protocol.stated(),
    }


def _stated_tokens(tokens: int | Tensor | None, protocol: Protocol) -> float:
    """A budget as one number: its mean over rows."""
    if tokens is None:
        return protocol.length
    return tokens if isinstance(tokens, int) else round(float(tokens.double().mean()), 3)


def _weights_hash(selector: Selector) -> str:
    artifact = getattr(selector, "artifact", None)
    return f"{artifact.sha256} " if artifact is not None else ""


def _check_evictors(selectors: dict[str, Selector], tokens: dict[str, int | Tensor | None], protocol: Protocol) -> None:
    for name, selector in selectors.items():
        if selector.permanent and protocol.simulate_prefill:
            raise ConfigError(f"{name!r} evicts at the end of a prompt, and with --simulate-prefill there is none; leave one of the two out")
        for label, count in tokens.items():
            if selector.permanent and count is not None:
                try:
                    check_room(selector, protocol.rule, count)
                except BudgetError as error:
                    raise BudgetError(f"at length {protocol.length}, budget {label}: {error}") from None


def _measure(loaded, selectors, piece: Chunk, tokens: dict[str, int | Tensor | None], rules: Rules) -> dict[str, Any]:
    """One chunk: mean NLL dense and for each method and budget, the share of tokens read, and the sums of the recall probe."""
    device = loaded.model.device
    budgets = {label: t if isinstance(t, int) else t.to(device) for label, t in tokens.items() if t is not None}
    history = sorted({p for s in selectors.values() for p in s.history})
    evictors = {name: s for name, s in selectors.items() if s.permanent}
    scorer = Scorer(loaded, piece, rules("dense", next(iter(tokens))), history, list(evictors.values()))
    nll, share, kept = {}, {}, {}
    for name, selector in selectors.items():
        if selector.permanent:
            found = dict(zip(budgets, scorer.evicted(selector, list(budgets.values())), strict=True))
            kept |= {(name, label): scored.kept for label, scored in found.items()}
        else:
            wanted = budgets if selector.selects else {}
            found = {label: scorer.scored(selector, budget, rule=rules(name, label)) for label, budget in wanted.items()}
        nll |= {f"{name}|{label}": float(scored.nll.mean()) for label, scored in found.items()}
        share |= {f"{name}|{label}": scored.read / scored.held for label, scored in found.items()}
    asked = {name: s for name, s in selectors.items() if not s.permanent}
    probe = RecallProbe(loaded.anatomy, asked, budgets, rules, kept=kept) if budgets else None
    nll["dense"] = float(scorer.scored(observe=probe).nll.mean())
    return {"nll": nll, "share": share, "recall": dict(probe.sums) if probe else {}, "by_head": probe.by_head if probe else {}}


def _figures(loaded, selectors, measured, pieces, tokens, protocol) -> dict[str, Any]:
    """The rows, and the gate's floor and ceiling at each budget."""
    sums: dict[str, float] = defaultdict(float)
    by_head: ByHead = {}
    for chunk in measured:
        for key, value in chunk["recall"].items():
            sums[key] += value
        for key, found in chunk.get("by_head", {}).items():
            for layer, heads in found.items():
                add_by_head(by_head, key, layer, heads)
    gate = {
        label: [recall_figures(sums, name, label)["mass_outside"] for name in ("random", "oracle")]
        for label, t in tokens.items()
        if t is not None
    }
    rows = [
        {
            **_row(loaded, name, selector, label, measured, pieces, sums, protocol),
            "mass_by_head": mass_by_head(by_head, name, label, loaded.anatomy.layers),
        }
        for label in tokens
        for name, selector in selectors.items()
    ]
    losses = {key: [chunk["nll"].get(key) for chunk in measured] for key in measured[0]["nll"]}
    return {"rows": rows, "gate": gate, "losses": losses, "clusters": [piece.cluster for piece in pieces]}


def _row(loaded, name, selector, label, measured, pieces, sums, protocol) -> dict[str, Any]:
    """A row: method, budget, length, chunks, nll_delta and its 95 % interval (nats), recall figures, bytes, fractions.

    `tokens` and `share_read` are of what was really read, by any query head of a KV head.
    """
    anatomy, key, rows = loaded.anatomy, f"{name}|{label}", protocol.rows
    dense = [chunk["nll"]["dense"] for chunk in measured]
    nll = [chunk["nll"].get(key, chunk["nll"]["dense"]) for chunk in measured]
    delta, interval = clustered_mean([a - b for a, b in zip(nll, dense, strict=True)], [p.cluster for p in pieces])
    share = sum(chunk["share"].get(key, 1.0) for chunk in measured) / len(measured)
    mean_context = protocol.length - (rows - 1) / 2
    tokens = round(share * mean_context, 2) if share < 1 else protocol.context
    rule = None if selector.name in PLAIN else protocol.rule
    parts = bytes_per_token(anatomy, selector, tokens, protocol.context, rule)
    kept = bytes_kept(anatomy, selector, tokens, protocol.context)
    return {
        "method": name,
        "budget": label,
        "tokens": tokens,
        "share_read": share,
        "length": protocol.length,
        "chunks": len(pieces),
        "clusters": len({p.cluster for p in pieces}),
        "nll": sum(nll) / len(nll),
        "perplexity": math.exp(sum(nll) / len(nll)),
        "nll_delta": delta,
        "nll_delta_ci": list(interval) if interval else None,
        **recall_figures(sums, name, label),
        "bytes_per_token": parts["total"],
        "bytes": parts,
        "bytes_kept": kept,
        "kept_fraction": kept / bytes_kept(anatomy, Dense(Dense.Config(), selector.geometry), protocol.context, protocol.context),
        "state_fraction": state_fraction(anatomy, selector, tokens if selector.permanent else protocol.context, protocol.context),
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
        floor, ceiling = row.get("gate") or result["gate"][row["budget"]]
        if not floor - 0.01 <= row["mass_outside"] <= ceiling + 1e-6:
            raise GateError(
                f"at budget {row['budget']} {row['method']!r} keeps {row['mass_outside']:.4f} of the attention mass, "
                f"outside random {floor:.4f} .. oracle {ceiling:.4f}; the result file is kept, but do not use it"
            )
