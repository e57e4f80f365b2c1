"""Compare ways of cutting matrices by their inputs on text: perplexity, shares of weights really not read, bytes, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..activations import ActivationMethod
from ..activations.pretrained import from_pretrained
from ..errors import ConfigError
from ..models import LoadedModel
from ..runtime import Budget, Rule
from ..runtime.activations import ActivationRun, apply_activations, check_activations
from ..tokens import Dense, Geometry, Selector
from ..training.text import Document, hash_documents
from .bytes import ELEMENT, bytes_per_token
from .evaluate import refuse_known_text, versions
from .intervals import clustered_mean
from .protocol import Protocol, cut
from .results import ResultFile, checked_shard
from .scoring import Chunk, Scorer
from .units import UnitProtocol

FORMAT = 1
Progress = Callable[[int, int, str], None]


def evaluate_activations(
    loaded: LoadedModel,
    specs: Sequence[str | Path] | Mapping[str, ActivationMethod],
    documents: Sequence[Document],
    protocol: UnitProtocol | None = None,
    *,
    cut_prompt: bool = False,
    select: tuple[Selector, Budget] | None = None,
    allow_trained_text: bool = False,
    result: str | Path | None = None,
    progress: Progress | None = None,
    shard: tuple[int, int] | None = None,
    as_it_is: bool = False,
) -> dict[str, Any] | None:
    """Score the ends of evenly spread chunks, dense and with cut matrices.

    The beginning of each chunk is a prompt, read densely by default; the rest is scored in one pass over states that the cuts have themselves
    changed, as decoding would.

    Parameters
    ----------
    loaded : LoadedModel
    specs : sequence of path, or mapping of str to ActivationMethod
        Artifact folders, or methods by a name to call them.
    documents : sequence of Document
    protocol : UnitProtocol, optional
    cut_prompt : bool
        Cut the prompt's rows too, as SCAP's evaluation does.
    select : (Selector, Budget), optional
        Tokens are chosen at the same time, also in the dense score.
    allow_trained_text : bool
        Evaluate even on text that was calibrated on.
    result : path, optional
        Result file: reused if complete for the same configuration, resumed if partial.
    progress : callable, optional
        progress(chunks done, chunks, note)
    shard : (int, int), optional
        (i, n): of n processes that share a result file this is number i, from 0, and scores every n-th chunk.
    as_it_is : bool
        Score nothing more: write the result from the chunks that are done; if they are not all, "chunks_done" says how many there are.

    Returns
    -------
    dict, or None for a shard while chunks of others are missing
        "rows" (see `_row`), "losses" of each chunk by method and "dense", "clusters", "configuration" and "configuration_hash".

    Raises
    ------
    ConfigError, TextError, ModelError, ArtifactError, StorageError
    """
    protocol = protocol or UnitProtocol()
    if isinstance(specs, Mapping):
        methods = dict(specs)
    else:
        methods = {str(spec): from_pretrained(spec, loaded) for spec in dict.fromkeys(specs)}
    if not methods:
        raise ConfigError("nothing to evaluate; give the folder of a calibration, such as --activations my-scap")
    for method in methods.values():
        check_activations(loaded, method)
    pieces = [
        Chunk(piece.ids, protocol.scored, piece.cluster)
        for piece in cut(loaded, documents, Protocol(length=protocol.length, count=protocol.count))
    ]
    known = refuse_known_text(methods, pieces, allow_trained_text, "calibrate")
    number, shards = checked_shard(shard, result)
    configuration = _configuration(loaded, methods, documents, protocol, cut_prompt, select)
    file = ResultFile(result, configuration, number if shards > 1 else None)
    if (finished := file.finished()) is not None:
        return finished
    done = file.chunks_done()
    for i, piece in enumerate(pieces):
        if progress is not None:
            progress(len(done) if i not in done else i, len(pieces), piece.cluster)
        if i not in done and i % shards == number and not as_it_is:
            done[i] = _measure(loaded, methods, piece, cut_prompt, select)
            file.add(i, {"cluster": piece.cluster, **done[i]})
    if shards > 1 and len(done := file.chunks_done()) < len(pieces):
        return None
    if as_it_is and not done:
        raise ConfigError(f"no chunk of this configuration is done in {file.path}.partial; score some first")
    missing = len(pieces) - len(done)
    pieces = [piece for i, piece in enumerate(pieces) if i in done]
    measured = [done[i] for i in sorted(done)]
    rows = [_row(loaded, name, method, measured, pieces, protocol, select) for name, method in methods.items()]
    losses = {name: [m["nll"][name] for m in measured] for name in ("dense", *methods)}
    return file.finish(
        {
            "rows": rows, "losses": losses, "clusters": [p.cluster for p in pieces], "trained_text_share": known, "versions": versions(),
            **({"chunks_done": len(pieces)} if missing else {}),
        }
    )


def _configuration(loaded, methods, documents, protocol, cut_prompt, select) -> dict[str, Any]:
    def stated(method: ActivationMethod) -> str:
        artifact = getattr(method, "artifact", None)
        return f"{method.name} {method.config}" + ("" if artifact is None else f" {artifact.sha256}")

    return {
        "format": FORMAT,
        "model": loaded.name,
        "model_hash": loaded.fingerprint,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "data_hash": hash_documents(documents),
        "activations": {name: stated(method) for name, method in methods.items()},
        "length": protocol.length,
        "chunks": protocol.count,
        "scored": protocol.scored,
        "cut_prompt": cut_prompt,
        "select": None if select is None else f"{select[0].name} {select[0].config} {select[1]}",
    }


def _measure(loaded, methods: Mapping[str, ActivationMethod], piece: Chunk, cut_prompt: bool, select) -> dict[str, Any]:
    """One chunk: mean NLL dense and under each method, and the shares of each layer's matrices that were not read."""
    selector, budget = (None, None) if select is None else (select[0], select[1].at(piece.length))
    scorer = Scorer(loaded, piece, Rule())
    nll, shares = {"dense": float(scorer.nll(selector, budget)[0].mean())}, {}
    for name, method in methods.items():
        with apply_activations(loaded, method, "all") as run:
            own = Scorer(loaded, piece, Rule()) if cut_prompt else scorer
            nll[name] = float(own.nll(selector, budget)[0].mean())
        shares[name] = layer_shares(run)
    return {"nll": nll, "shares": shares}


def layer_shares(run: ActivationRun) -> dict[str, list[float]]:
    """Shares that were not read, a list over layers for each matrix that is cut."""
    geometry = run.method.geometry
    parts = ("up", "down") if run.method.guided else run.method.parts
    return {part: [round(run.share(i, part), 6) for i in range(geometry.layers)] for part in parts}


def _row(loaded, name: str, method: ActivationMethod, measured, pieces, protocol: UnitProtocol, select) -> dict[str, Any]:
    """A row: method, target, true shares, perplexities with the 95 % interval of their ratio, bytes."""
    anatomy, geometry = loaded.anatomy, method.geometry
    dense, nll = [m["nll"]["dense"] for m in measured], [m["nll"][name] for m in measured]
    delta, interval = clustered_mean([a - b for a, b in zip(nll, dense, strict=True)], [p.cluster for p in pieces])
    parts = measured[0]["shares"][name]
    shares = {part: [sum(m["shares"][name][part][i] for m in measured) / len(measured) for i in range(geometry.layers)] for part in parts}
    means = {part: sum(by_layer) / len(by_layer) for part, by_layer in shares.items()}
    sparsity = geometry.sparsity(means)
    context = protocol.length - (protocol.scored - 1) / 2
    selector = Dense(Dense.Config(), Geometry.of(anatomy)) if select is None else select[0]
    bytes_dense = bytes_per_token(anatomy, selector, context if select is None else select[1].at(protocol.length), context)
    saved = ELEMENT * sparsity * geometry.layers * sum(map(geometry.elements, geometry.parts)) - method.state_bytes()
    return {
        "activations": name,
        "method": method.name,
        "target": method.target,
        "sparsity": sparsity,
        "bytes_saved": saved / bytes_dense["weights"],
        "ppl": math.exp(sum(nll) / len(nll)),
        "ppl_dense": math.exp(sum(dense) / len(dense)),
        "ppl_ratio": math.exp(delta),
        "ppl_ratio_ci": None if interval is None else [math.exp(x) for x in interval],
        "bytes_per_token": bytes_dense["total"] - saved,
        "bytes_dense": bytes_dense["total"],
        "shares": means,
        "layers": {part: [round(share, 4) for share in by_layer] for part, by_layer in shares.items()},
        "chunks": len(pieces),
        "clusters": len({p.cluster for p in pieces}),
    }
