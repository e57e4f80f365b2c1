"""Distillation of a predictor from the frozen model's own attention."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..models import LoadedModel
from ..ops import group_importance
from ..tokens import Geometry, Selector, create
from .checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from .loss import distillation_loss, mass_recall
from .schedule import calibration_steps, schedule
from .statistics import gather_statistics
from .teacher import sample_positions, teach
from .windows import window

Progress = Callable[[int, int, str], None]
"""progress(done, in all, note), for each phase: calibration, training (the note has loss and recall), int8 scales"""


@dataclass(frozen=True)
class TrainingConfig:
    """How a predictor is trained.

    Attributes
    ----------
    lengths : tuple of int
        Chunk lengths; each gets the same number of tokens.
    tokens : int
        Tokens of text to learn from.
    calibration_tokens : int
        Tokens for the second moments that start every method, at most `tokens`.
    rows : int
        Query rows sampled from each chunk, at most; long chunks give fewer, so that rows x length stays below `row_tokens`.
    row_tokens : int
    learning_rate, projection_rate : float
        Peak rates of the MLPs and of the low-rank projections, which start near where they end.
    weight_decay, clip : float
    warmup : float
        Share of the steps with rising rate; then a cosine to a twentieth.
    sinks, window : int
        Always read, so nothing to learn.
    seed : int
    checkpoint_seconds : float
    """

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    tokens: int = 600_000
    calibration_tokens: int = 49_152
    rows: int = 128
    row_tokens: int = 262_144
    learning_rate: float = 5e-3
    projection_rate: float = 4e-3
    weight_decay: float = 0.01
    clip: float = 10.0
    warmup: float = 0.05
    sinks: int = 4
    window: int = 32
    seed: int = 0
    checkpoint_seconds: float = 45.0

    @property
    def calibrated(self) -> int:
        """Tokens that calibration really sees."""
        return min(self.calibration_tokens, self.tokens)


@dataclass
class TrainingRun:
    """A trained selector and its history.

    Attributes
    ----------
    selector : Selector
    history : list of dict
        A row each few steps: step, loss (nats), recall (share of attention mass outside sinks and window at 1/8).
    seconds : float
    """

    selector: Selector
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def train(
    loaded: LoadedModel,
    method: str,
    stream: Tensor,
    config: TrainingConfig,
    settings: dict[str, Any] | None = None,
    work: Path | None = None,
    resume: bool = False,
    text_hash: str = "",
    progress: Progress | None = None,
) -> TrainingRun:
    """Calibrate a method and, if it has something to learn, distil it.

    Parameters
    ----------
    loaded : LoadedModel
        Kept frozen.
    method : str
        "foresight", "distilled", "lowrank", "indexer", "butler", or any other registered method with importance keys.
    stream : (tokens,) int64
        Token stream of the training text.
    config : TrainingConfig
    settings : dict, optional
        Fields of the method's config.
    work : Path, optional
        Folder for checkpoints.
    resume : bool
        Continue from the checkpoint in `work`, if there is one.
    text_hash : str
        Of the training text; a checkpoint of other text is refused.
    progress : callable, optional

    Raises
    ------
    TextError, ConfigError, ArtifactError, ModelError
    """
    started = time.monotonic()
    selector = create(method, Geometry.of(loaded.anatomy), **(settings or {}))
    distilled = getattr(selector.config, "loss", None) is not None
    if not (distilled and resume and work is not None and has_checkpoint(work)):
        steps = calibration_steps(len(stream), config.lengths, config.calibrated, config.seed)
        chunks = [window(stream, s.start, s.length, loaded.start_tokens) for s in steps]
        statistics = gather_statistics(loaded, chunks, config.sinks, config.window, config.seed, progress=progress)
        selector.initialise(statistics)
    selector.to(loaded.model.device)
    run = TrainingRun(selector)
    if distilled:
        _distil(loaded, selector, stream, config, run, work, resume, text_hash, progress)
    _fit_int8(loaded, selector, stream, config, progress)
    selector.requires_grad_(False)
    run.seconds += time.monotonic() - started
    return run


def _distil(loaded, selector, stream, config, run, work, resume, text_hash, progress) -> None:
    steps = schedule(len(stream), config.lengths, config.tokens, config.seed)
    projections = [p for name, p in selector.named_parameters() if name.endswith("_projection")]
    others = [p for name, p in selector.named_parameters() if not name.endswith("_projection")]
    groups = [{"params": others, "peak": config.learning_rate}, {"params": projections, "peak": config.projection_rate}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    identity = {
        "model": loaded.fingerprint,
        "dtype": str(loaded.model.dtype),
        "text": text_hash,
        "method": selector.name,
        "settings": asdict(selector.config),
        "training": {**asdict(config), "lengths": list(config.lengths)},
    }
    done = 0
    if resume and work is not None and (state := load_checkpoint(work, selector, optimizer, identity)):
        done, run.history, run.seconds = state["step"], state["history"], state["seconds"]
    saved = began = time.monotonic()
    for number in range(done, len(steps)):
        step = steps[number]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _rate(number, len(steps), config.warmup)
        loss, recall = _step(
            loaded,
            selector,
            optimizer,
            window(stream, step.start, step.length, loaded.start_tokens),
            config,
            number,
            measure=number % 5 == 0 or number == len(steps) - 1,
        )
        if not math.isfinite(loss):
            raise ModelError(
                f"the training loss became {loss} at step {number + 1}; lower the learning rate or check the model for NaN weights"
            )
        if recall is not None:
            run.history.append({"step": number + 1, "loss": loss, "recall": recall})
        if progress is not None:
            recall = run.history[-1]["recall"]
            progress(number + 1, len(steps), f"training: loss {loss:.4f}, recall at 1/8 {recall:.3f}")
        if work is not None and (time.monotonic() - saved > config.checkpoint_seconds or number + 1 == len(steps)):
            state = {
                "step": number + 1,
                "history": run.history,
                "seconds": run.seconds + time.monotonic() - began,
                "identity": identity,
            }
            save_checkpoint(work, selector, optimizer, state)
            saved = time.monotonic()


def _step(loaded, selector, optimizer, ids, config, number, measure) -> tuple[float, float | None]:
    # A generator of its own for each step, so that a resumed run draws what an uninterrupted one would.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    earliest = min(len(ids) // 8, 2 * (config.sinks + config.window))
    count = max(min(config.rows, config.row_tokens // len(ids)), 1)
    positions = sample_positions(len(ids), count, earliest, generator)
    lesson = teach(loaded, ids, positions, selector.layers, selector.producers)
    optimizer.zero_grad(set_to_none=True)
    total, kept, available = 0.0, 0.0, 0.0
    for layer in selector.layers:
        rows, everything = lesson.rows(layer), lesson.every_row(layer)
        loss = distillation_loss(selector, rows, everything, selector.config.loss, config.sinks, config.window)
        loss = loss / len(selector.layers)
        loss.backward()
        total += loss.item()
        if measure:
            with torch.no_grad():
                scores = selector.training_scores(rows, everything)
                importance = group_importance(scores, rows.visible, rows.keys.shape[1], selector.config.reduction)
            got, there = mass_recall(importance, rows, 1 / 8, config.sinks, config.window)
            kept, available = kept + got, available + there
    torch.nn.utils.clip_grad_norm_(selector.parameters(), config.clip)
    optimizer.step()
    return total, kept / max(available, 1e-12) if measure else None


def _rate(step: int, steps: int, warmup: float) -> float:
    rising = min(1.0, (step + 1) / (warmup * steps + 1))
    return rising * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _fit_int8(loaded, selector, stream, config, progress) -> None:
    """Static scales: the 99.99th percentile of the absolute importance keys of the calibration text, a channel each."""
    collected: dict[int, list[Tensor]] = {layer: [] for layer in selector.layers}
    steps = calibration_steps(len(stream), config.lengths, config.calibrated, config.seed + 1)
    for number, step in enumerate(steps):
        if progress is not None:
            progress(number, len(steps), "int8 scales")
        ids = window(stream, step.start, step.length, loaded.start_tokens)
        lesson = teach(loaded, ids, torch.tensor([step.length - 1]), selector.layers, selector.producers)
        for layer in selector.layers:
            with torch.no_grad():
                low = selector.importance_keys(lesson.every_row(layer))[0].abs()
            top = max(step.length // 10_000, 1)
            collected[layer].append(low.topk(top + 1, dim=1).values[:, top])
    selector.set_key_scales({layer: torch.stack(seen).amax(dim=0) for layer, seen in collected.items()})
