"""From text to a predictor on disk: documents, a held-out slice, training, the recall table, the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts import check_target
from ..errors import TextError
from ..models import LoadedModel
from ..tokens import Selector, method
from ..tokens.pretrained import save_pretrained
from .checkpoint import FILE
from .loop import Progress, TrainingConfig, train
from .loss import mass_recall
from .shingles import shingles
from .shipped_text import LICENCE, shipped_documents
from .teacher import sample_positions, teach
from .text import hash_documents, read_documents, split_held_out, token_stream
from .windows import window

HELD_OUT = 0.1
RECALL_SHARES = (1 / 4, 1 / 8, 1 / 16)


def train_predictor(
    loaded: LoadedModel,
    name: str,
    out: str | Path,
    text: Sequence[str | Path] = (),
    config: TrainingConfig | None = None,
    settings: dict[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Selector:
    """Train a predictor and write it as an artifact.

    Parameters
    ----------
    loaded : LoadedModel
        The frozen model, best in bfloat16.
    name : str
        A learned method, such as "foresight", "distilled" or "lowrank".
    out : str or Path
        Artifact folder; checkpoints live in `OUT.partial` beside it until it is complete.
    text : sequence of paths
        Files and folders; the text that ships with the package without any.
    config : TrainingConfig, optional
    settings : dict, optional
        Fields of the method's config.
    resume : bool
        Go on from the checkpoint of an interrupted run with the same arguments.
    progress : callable, optional

    Returns
    -------
    Selector
        With `artifact` attached.

    Raises
    ------
    ConfigError, TextError, ArtifactError, StorageError, ModelError
    """
    config = config or TrainingConfig()
    if not method(name).learned:
        raise TextError(f"method {name!r} has nothing to train; use it as it is with --select {name}")
    out = Path(out).expanduser()
    partial = out.with_name(f"{out.name}.partial")
    check_target(out)
    documents = read_documents(list(text)) if text else shipped_documents()
    check_lengths(loaded, config)
    if (characters := sum(len(d.text) for d in documents)) < max(config.lengths):
        raise TextError(
            f"the training text has {characters} characters, too few for one chunk of {max(config.lengths)} tokens; "
            "give more --text or a lower --length"
        )
    learn, held = split_held_out(documents, HELD_OUT, seed=0)
    stream = torch.from_numpy(token_stream(learn, loaded.tokenizer)[0])
    held_stream = torch.from_numpy(token_stream(held, loaded.tokenizer)[0])
    run = train(
        loaded,
        name,
        stream,
        config,
        settings,
        work=partial,
        resume=resume,
        text_hash=hash_documents(learn),
        progress=progress,
    )
    save_pretrained(
        out,
        run.selector,
        loaded,
        training={
            **asdict(config),
            "lengths": list(config.lengths),
            "seconds": round(run.seconds, 1),
            "history": run.history,
        },
        data={
            "sha256": hash_documents(learn),
            "documents": [{"name": d.name, "sha256": d.sha256} for d in learn],
            "held_out": [{"name": d.name, "sha256": d.sha256} for d in held],
            "tokens": len(stream),
            "licence": LICENCE if not text else "see the documents listed",
        },
        recall=recall_table(loaded, run.selector, held_stream, config),
        training_shingles=shingles(stream.numpy()),
    )
    (partial / FILE).unlink(missing_ok=True)
    if partial.is_dir() and not any(partial.iterdir()):
        partial.rmdir()
    return run.selector


def check_lengths(loaded: LoadedModel, config: TrainingConfig) -> None:
    """Raise `TextError` unless every length fits the model's context and leaves something to choose."""
    context, least = loaded.anatomy.context_length, 2 * (config.sinks + config.window)
    for length in config.lengths:
        if not least <= length <= context:
            raise TextError(
                f"training length {length} is outside {least}..{context} (twice sinks and window .. context of "
                f"{loaded.name}); change --length"
            )


def recall_table(
    loaded: LoadedModel, selector: Selector, stream: Tensor, config: TrainingConfig, chunks: int = 4
) -> list[dict[str, Any]]:
    """Attention-mass recall outside sinks and window on held-out text, as served (importance keys in int8), a row a length.

    Lengths that do not fit the text, and shares that do not hold sinks and window, are left out.
    """
    rows = []
    for length in config.lengths:
        count = min(chunks, len(stream) // length)
        shares = [share for share in RECALL_SHARES if share * length > config.sinks + config.window]
        sums = {share: [0.0, 0.0] for share in shares}
        for i in range(count):
            generator = torch.Generator().manual_seed(config.seed + i)
            positions = sample_positions(length, 32, length // 2, generator)
            ids = window(stream, i * length, length, loaded.start_tokens)
            lesson = teach(loaded, ids, positions, selector.layers, selector.producers)
            index = selector.new_index()
            for layer in selector.layers:
                view = lesson.rows(layer)
                index.extend(lesson.every_row(layer))
                view.index = index
                importance = selector.importance(view)
                for share in shares:
                    got, there = mass_recall(importance, view, share, config.sinks, config.window)
                    sums[share][0] += got
                    sums[share][1] += there
        if count and shares:
            rows.append(
                {
                    "length": length,
                    **{f"recall@{share:g}": round(got / there, 4) for share, (got, there) in sums.items()},
                }
            )
    return rows
