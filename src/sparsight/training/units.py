"""From a trace or text to a unit method on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts import check_target
from ..errors import ConfigError
from ..models import LoadedModel
from ..units import Scores, UnitGeometry, UnitMethod, create, method
from ..units.criteria import criterion, relative
from ..units.network import NetworkMethod
from ..units.pretrained import save_pretrained
from .shingles import shingles
from .shipped_text import LICENCE, shipped_documents
from .text import hash_documents, read_documents, token_stream
from .unit_calibration import calibrate_cuts, calibrate_gated
from .unit_network import UnitTraining, prompts_of, train_network
from .unit_trace import Trace
from .windows import chunks, window

Progress = Callable[[int, int, str], None]
CALIBRATION = 24
"""Windows that moments and thresholds are taken from."""
CALIBRATION_LENGTH = 512
HELD_OUT = 64
"""Examples of odd documents that rank correlations are measured on, at most."""


def train_units(
    loaded: LoadedModel,
    name: str,
    out: str | Path,
    trace: str | Path | None = None,
    text: Sequence[str | Path] = (),
    settings: dict[str, Any] | None = None,
    config: UnitTraining | None = None,
    progress: Progress | None = None,
) -> UnitMethod:
    """Make a unit method of a model and write it as an artifact.

    Parameters
    ----------
    loaded : LoadedModel
        Frozen.
    name : str
        "shadow", "dejavu" and "static", which learn from a trace, or "gated", which takes statistics from text.
    out : str or Path
        Artifact folder.
    trace : str or Path, optional
        Folder of `write_trace`. Documents with an even number are learned from; on the others rank correlations are measured.
    text : sequence of paths
        For `gated`: files and folders; the text that ships with the package without any.
    settings : dict, optional
        Fields of the method's config.
    config : UnitTraining, optional
    progress : callable, optional

    Returns
    -------
    UnitMethod
        With `artifact` attached.

    Raises
    ------
    ConfigError, TextError, ArtifactError, StorageError, ModelError
    """
    started, config = time.monotonic(), config or UnitTraining()
    cls = method(name)
    if not cls.learned:
        raise ConfigError(f"method {name!r} has nothing to train; use it as it is with --units {name}")
    if (name != "gated") != (trace is not None):
        if name == "gated":
            raise ConfigError(f"method {name!r} is calibrated on text, not on a trace; give --text, or nothing for the shipped text")
        raise ConfigError(f"method {name!r} learns from a trace; make one with sparsight trace, then give --trace DIR")
    check_target(out)
    settings = dict(settings or {})
    if name == "gated":
        units, ids, data = _gated(loaded, settings, text, progress)
        quality, training = [], {"windows": CALIBRATION, "length": CALIBRATION_LENGTH}
    else:
        traced = Trace.open(trace, loaded)
        settings.setdefault("criterion", traced.criteria[0])
        units = create(name, UnitGeometry.of(loaded.anatomy), **settings)
        even, odd = split_documents(traced)
        history = _learn(units, loaded, traced, even, config, progress)
        quality = rank_table(units, loaded, traced, odd[:: max(len(odd) // HELD_OUT, 1)][:HELD_OUT])
        training = {**(asdict(config) if history else {}), "examples": len(even), "criterion": units.config.criterion, "history": history}
        ids = traced.ids[even].flatten()
        names = traced.stated["documents"]
        used = sorted(set(traced.document[even].tolist()))
        data = {"sha256": traced.stated["text_sha256"], "documents": [names[i] for i in used], "tokens": int(ids.numel())}
    training["seconds"] = round(time.monotonic() - started, 1)
    save_pretrained(out, units, loaded, training=training, data=data, quality=quality, training_shingles=shingles(ids.numpy()))
    return units


def split_documents(trace: Trace) -> tuple[list[int], list[int]]:
    """Examples of even and of odd documents; of a single document the first and second half."""
    document = trace.document
    if len(set(document.tolist())) == 1:
        half = (len(document) + 1) // 2
        return list(range(half)), list(range(half, len(document)))
    ranks = {number: rank for rank, number in enumerate(sorted(set(document.tolist())))}
    sides: tuple[list[int], list[int]] = ([], [])
    for i, number in enumerate(document.tolist()):
        sides[ranks[number] % 2].append(i)
    return sides


def _gated(loaded: LoadedModel, settings: dict[str, Any], text, progress) -> tuple[UnitMethod, Tensor, dict[str, Any]]:
    units = create("gated", UnitGeometry.of(loaded.anatomy), **settings)
    documents = read_documents(list(text)) if text else shipped_documents()
    stream, _ = token_stream(documents, loaded.tokenizer)
    length = min(CALIBRATION_LENGTH, loaded.anatomy.context_length, len(stream) - 1)
    starts = chunks(stream, length, min(CALIBRATION, (len(stream) - 1) // length))
    windows = [window(torch.from_numpy(stream), int(start), length, loaded.start_tokens) for start in starts]
    calibrate_gated(units, loaded, windows, progress)
    units.to(loaded.model.device)
    calibrate_cuts(units, loaded, windows[::3], progress)
    data = {
        "sha256": hash_documents(documents),
        "documents": [{"name": d.name, "sha256": d.sha256} for d in documents],
        "tokens": sum(map(len, windows)),
        "licence": LICENCE if not text else "see the documents listed",
    }
    return units.requires_grad_(False).eval(), torch.cat(windows), data


def _learn(units: UnitMethod, loaded: LoadedModel, trace: Trace, rows: list[int], config: UnitTraining, progress) -> list[dict[str, float]]:
    if not isinstance(units, NetworkMethod):
        with torch.no_grad():
            for kind in ("heads", "neurons"):
                getattr(units, kind).copy_(relative(trace.scores(units.config.criterion, "rest", kind)[rows].float()).mean(dim=0))
        units.to(loaded.model.device).requires_grad_(False)
        return []
    history = train_network(units, loaded, trace, rows, config, progress)
    if units.config.mode == "token":
        calibrate_cuts(units, loaded, list(trace.ids[rows[:: max(len(rows) // CALIBRATION, 1)][:CALIBRATION]]), progress)
    return history


def rank_table(units: UnitMethod, loaded: LoadedModel, trace: Trace, rows: list[int]) -> list[dict[str, Any]]:
    """Rank correlation with the importance on held-out text, of the method and of the mean it started from; a row a kind.

    Of a method for prompts and of the mean: with a window's importance over what follows its prompt. Of a method for tokens: with each token's.
    """
    from ..evaluation.unit_ranks import spearman

    if not rows:
        return []
    mean = units.mean_scores()
    if units.modes[0] == "token":
        return _token_ranks(units, loaded, trace, rows[:8], mean, spearman)
    given: Scores = mean
    if units.modes[0] == "prompt":
        prompts = prompts_of(loaded, trace, rows, units.producers)
        made = [units.given(prompt) for prompt in prompts]
        given = Scores(torch.cat([m.heads for m in made]), torch.cat([m.neurons for m in made]))
    table = []
    for kind in ("heads", "neurons"):
        truth = trace.scores(units.config.criterion, "rest", kind)[rows].float()[:, 1:]
        scores = [getattr(s, kind)[..., 1:, :].expand_as(truth) for s in (given, mean)]
        ours, plain = (_mean(spearman(s, truth)) for s in scores)
        table.append({"kind": kind, "examples": len(rows), "spearman": ours, "of_mean": plain})
    return table


def _token_ranks(units, loaded, trace, rows, mean, spearman) -> list[dict[str, Any]]:
    from ..runtime.units import masked

    sums = {kind: [[], []] for kind in ("heads", "neurons")}
    per_row = criterion("l2").per_row

    def see(kind, of, truth, mask) -> None:
        if of.layer == 0:
            return
        magnitude = per_row((truth if kind == "heads" else truth[..., None])[None], None)[0]
        scores = units.head_scores(of) if kind == "heads" else units.neuron_scores(of)
        sums[kind][0].append(_mean(spearman(scores, magnitude)))
        sums[kind][1].append(_mean(spearman(getattr(mean, kind)[of.layer].to(magnitude.device).expand_as(magnitude), magnitude)))

    with masked(loaded.model, loaded.anatomy, None, see):
        for row in rows:
            loaded.anatomy.base()(trace.ids[row][None].to(loaded.model.device), use_cache=False)
    return [
        {"kind": kind, "examples": len(rows), "spearman": sum(a) / len(a), "of_mean": sum(b) / len(b)} for kind, (a, b) in sums.items()
    ]


def _mean(values: Tensor) -> float:
    return float(values.mean())
