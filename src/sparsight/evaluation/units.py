"""Compare ways of leaving out heads and neurons on text: perplexity of continuations, true shares, bytes, rank correlations, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, ConfigError
from ..models import LoadedModel
from ..runtime import Budget, Rule
from ..runtime.units import Choices, PromptRecord, Tally, UnitPlan, masked, recorded
from ..tokens import Selector
from ..training.text import Document, hash_documents
from ..units import Sparsity, UnitMethod
from ..units.pretrained import resolve_units
from .bytes import bytes_per_token
from .evaluate import refuse_known_text, versions
from .intervals import clustered_mean
from .protocol import Protocol, cut
from .results import ResultFile
from .scoring import Chunk, Scorer
from .unit_bytes import unit_bytes
from .unit_ranks import RankProbe, given_scores

FORMAT = 1
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class UnitProtocol:
    """How text is scored.

    Attributes
    ----------
    length : int
        Tokens a chunk.
    count : int
        Chunks, evenly spread.
    prompt : int, optional
        Tokens of a chunk that are read densely and not scored; half of it by default.
    """

    length: int = 512
    count: int = 32
    prompt: int | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and not 1 <= self.prompt < self.length:
            raise ConfigError(f"the prompt must be from 1 to {self.length - 1} of the {self.length} tokens of a chunk, got {self.prompt}")

    @property
    def scored(self) -> int:
        """Positions scored in a chunk."""
        return self.length - (self.length // 2 if self.prompt is None else self.prompt)


def evaluate_units(
    loaded: LoadedModel,
    specs: Sequence[str],
    documents: Sequence[Document],
    sparsities: Sequence[Sparsity | str],
    protocol: UnitProtocol | None = None,
    *,
    mode: str | None = None,
    heads: str | None = None,
    spread: str = "local",
    rule: str = "threshold",
    pool: str = "layer",
    select: tuple[Selector, Budget] | None = None,
    allow_trained_text: bool = False,
    result: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the ends of evenly spread chunks, dense and with units left out.

    The beginning of each chunk is a prompt: read densely, and all that the prompt mode looks at. The rest is scored in one masked pass over
    states that leaving out has itself perturbed, as decoding would.

    Parameters
    ----------
    loaded : LoadedModel
    specs : sequence of str
        See `units.pretrained.resolve_units`.
    documents : sequence of Document
    sparsities : sequence of Sparsity or str
    protocol : UnitProtocol, optional
    mode : {"static", "prompt", "token"}, optional
        Of the methods that have it; the others take their first.
    heads : str, optional
        Method that chooses the heads, for all.
    spread, rule, pool
        See `UnitPlan`.
    select : (Selector, Budget), optional
        Tokens are chosen at the same time, also in the dense score.
    allow_trained_text : bool
        Evaluate even on text that a predictor was trained on.
    result : path, optional
        Result file: reused if complete for the same configuration, resumed if partial.
    progress : callable, optional
        progress(chunks done, chunks, note)

    Returns
    -------
    dict
        "rows" (see `_row`), "configuration" and "configuration_hash".

    Raises
    ------
    BudgetError, ConfigError, TextError, ModelError, ArtifactError, StorageError
    """
    protocol = protocol or UnitProtocol()
    methods = {spec: resolve_units(spec, loaded) for spec in dict.fromkeys(specs)}
    head_method = None if heads is None else resolve_units(heads, loaded)
    plans = {}
    for spec, method in methods.items():
        own = mode if mode in method.modes or mode is None or len(method.modes) > 1 else None
        for sparsity in map(Sparsity.parse, sparsities):
            plans[spec, str(sparsity)] = UnitPlan(method, sparsity, own, head_method, spread, rule, pool)
    if not plans:
        raise ConfigError("nothing to evaluate; give a method and a unit sparsity, such as --units gated --unit-sparsity neurons=0.5")
    pieces = _cut(loaded, documents, protocol)
    known = refuse_known_text({**methods, **({} if head_method is None else {heads: head_method})}, pieces, allow_trained_text, "make")
    file = ResultFile(result, _configuration(loaded, plans, documents, protocol, heads, select))
    if (finished := file.finished()) is not None:
        return finished
    done, static = file.chunks_done(), _static(loaded, methods)
    for i, piece in enumerate(pieces):
        if progress is not None:
            progress(len(done) if i not in done else i, len(pieces), piece.cluster)
        if i not in done:
            done[i] = _measure(loaded, plans, piece, static, select)
            file.add(i, {"cluster": piece.cluster, **done[i]})
    measured = [done[i] for i in range(len(pieces))]
    rows = [_row(loaded, spec, plan, sparsity, measured, pieces, protocol, select) for (spec, sparsity), plan in plans.items()]
    return file.finish({"rows": rows, "trained_text_share": known, "versions": versions()})


def _cut(loaded: LoadedModel, documents: Sequence[Document], protocol: UnitProtocol) -> list[Chunk]:
    pieces = cut(loaded, documents, Protocol(length=protocol.length, count=protocol.count))
    return [Chunk(piece.ids, protocol.scored, piece.cluster) for piece in pieces]


def _static(loaded: LoadedModel, methods: dict[str, UnitMethod]) -> UnitMethod | None:
    """The static mean that orders are compared with: the one asked for, or the one that ships."""
    found = next((method for method in methods.values() if method.name == "static"), None)
    try:
        return found or resolve_units("static", loaded)
    except ArtifactError:
        return None


def _configuration(loaded, plans, documents, protocol, heads, select) -> dict[str, Any]:
    def stated(method: UnitMethod) -> str:
        artifact = getattr(method, "artifact", None)
        return f"{artifact.sha256} {method.config}" if artifact is not None else str(method.config)

    plan = next(iter(plans.values()))
    return {
        "format": FORMAT,
        "model": loaded.name,
        "model_hash": loaded.fingerprint,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "data_hash": hash_documents(documents),
        "units": {spec: f"{p.neuron_mode} {stated(p.units)}" for (spec, _), p in plans.items()},
        "heads": None if heads is None else f"{heads} {plan.head_mode} {stated(plan.head_method)}",
        "sparsities": list(dict.fromkeys(sparsity for _, sparsity in plans)),
        "spread": plan.spread,
        "rule": plan.rule,
        "pool": plan.pool,
        "length": protocol.length,
        "chunks": protocol.count,
        "scored": protocol.scored,
        "select": None if select is None else f"{select[0].name} {select[0].config} {select[1]}",
    }


def _measure(loaded, plans: dict[tuple[str, str], UnitPlan], piece: Chunk, static, select) -> dict[str, Any]:
    """One chunk: mean NLL dense and under each plan, shares computed, and sums of rank correlations."""
    network, anatomy = loaded.model, loaded.anatomy
    producers = {p for plan in plans.values() for method in plan.methods for p in method.producers}
    record, scored = PromptRecord(anatomy, producers), PromptRecord(anatomy, producers)
    with recorded(network, anatomy, record):
        scorer = Scorer(loaded, piece, Rule())
    selector, budget = (None, None) if select is None else (select[0], select[1].at(piece.length))

    def loss() -> float:
        return float(scorer.nll(selector, budget)[0].mean())

    with recorded(network, anatomy, scored):
        scorer.nll()
    all_choices: dict[tuple[str, str], Choices] = {}
    for key, plan in plans.items():
        choices = all_choices[key] = Choices(plan)
        if choices.needs_prompt:
            choices.see((record if plan.units.deployable else scored).prompt())
    firsts = {spec: key for key in reversed(plans) for spec in [key[0]]}
    probe = RankProbe({spec: (plans[key], given_scores(plans[key], all_choices[key])) for spec, key in firsts.items()}, static)
    with masked(network, anatomy, None, probe):
        scorer.nll()
    nll, dropped = {"dense": loss()}, {}
    for key, choices in all_choices.items():
        with masked(network, anatomy, choices) as tally:
            nll["|".join(key)] = loss()
        dropped["|".join(key)] = _dropped(tally)
    ranks = {"|".join(key): value for key, value in probe.sums.items()}
    return {"nll": nll, "dropped": dropped, "ranks": ranks}


def _control(key: str, spec: str, sparsity: str, measured, pieces) -> dict[str, Any]:
    """Perplexity over that of the static choice on the same chunks, if that was evaluated too, with its 95 % interval."""
    names = {k.partition("|")[0] for m in measured for k in m["nll"]}
    static = next((name for name in names if name.split("=")[0] == "static" or Path(name).name == "static"), None)
    if static in (None, spec):
        return {"ratio_to_static": None, "ratio_to_static_ci": None}
    difference = [m["nll"][key] - m["nll"][f"{static}|{sparsity}"] for m in measured]
    mean, interval = clustered_mean(difference, [p.cluster for p in pieces])
    return {"ratio_to_static": math.exp(mean), "ratio_to_static_ci": None if interval is None else [math.exp(x) for x in interval]}


def _dropped(tally: Tally) -> list[float]:
    return [tally.dropped("heads"), tally.dropped("neurons")]


def _row(loaded, spec, plan: UnitPlan, sparsity, measured, pieces, protocol, select) -> dict[str, Any]:
    """A row: method, mode, true shares left out, perplexities, their ratios with 95 % intervals, bytes, rank correlations."""
    key, anatomy = f"{spec}|{sparsity}", loaded.anatomy
    dense, nll = [m["nll"]["dense"] for m in measured], [m["nll"][key] for m in measured]
    delta, interval = clustered_mean([a - b for a, b in zip(nll, dense, strict=True)], [p.cluster for p in pieces])
    control = _control(key, spec, sparsity, measured, pieces)
    heads, neurons = (sum(m["dropped"][key][i] for m in measured) / len(measured) for i in (0, 1))
    from ..tokens import Dense, Geometry

    selector = Dense(Dense.Config(), Geometry.of(anatomy)) if select is None else select[0]
    context = protocol.length - (protocol.scored - 1) / 2
    parts = bytes_per_token(anatomy, selector, context if select is None else select[1].at(protocol.length), context)
    units = unit_bytes(anatomy, plan, heads, neurons)
    ranks = {}
    for kind in ("heads", "neurons"):
        for who, name in (("method", f"spearman_{kind}"), ("static", f"spearman_{kind}_static")):
            found = [m["ranks"].get(f"{spec}|{kind}|{who}") for m in measured]
            count = sum(f[1] for f in found if f is not None)
            ranks[name] = sum(f[0] for f in found if f is not None) / count if count else None
    return {
        "units": spec,
        "mode": plan.neuron_mode if plan.sparsity.neurons else plan.head_mode,
        "sparsity": sparsity,
        "heads": heads,
        "neurons": neurons,
        "ppl": math.exp(sum(nll) / len(nll)),
        "ppl_dense": math.exp(sum(dense) / len(dense)),
        "ppl_ratio": math.exp(delta),
        "ppl_ratio_ci": None if interval is None else [math.exp(x) for x in interval],
        **control,
        "bytes_per_token": parts["total"] - units["skipped"] + units["units"],
        "bytes_dense": parts["total"],
        "parameters_fraction": plan.parameter_count / sum(p.numel() for p in loaded.model.parameters()),
        "chunks": len(pieces),
        "clusters": len({p.cluster for p in pieces}),
        **ranks,
        "deployable": all(method.deployable for method in plan.methods),
    }
