"""From calibration text to centres and thresholds on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..activations import ActivationGeometry, ActivationMethod, create, method
from ..activations.pretrained import save_pretrained
from ..artifacts import check_target
from ..errors import ConfigError, ModelError, TextError
from ..models import LoadedModel
from ..runtime.activations import check_not_shared
from .activation_capture import check_inputs, find_cut, quantile, run_base, watched_inputs
from .activation_importance import output_importance
from .activation_price import matrix_costs, priced
from .activation_shares import Shares, block_paths, block_shares, uniform_shares
from .shingles import shingles
from .shipped_text import LICENCE, shipped_documents
from .text import Document, hash_documents, read_documents, token_stream
from .windows import chunks, window

Progress = Callable[[int, int, str], None]
_CHARACTERS, _SPARE = 4, 4
# Characters of a token, about.


@dataclass(frozen=True)
class ActivationCalibration:
    """What a calibration looks at.

    Attributes
    ----------
    target : float
        Share that the method cuts of what it cuts, in [0, 1).
    windows, length : int
        Of text, evenly spread; SCAP's 64 of 256 tokens.
    gradients : int
        Windows that the loss's gradient is taken on, where the method wants it.
    """

    target: float = 0.5
    windows: int = 64
    length: int = 256
    gradients: int = 24

    def __post_init__(self) -> None:
        if not 0 <= self.target < 1:
            raise ConfigError(f"--target must be a share in [0, 1), got {self.target}; 0.5 cuts half of the inputs")
        for name in ("windows", "length", "gradients"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


def calibrate_activations(
    loaded: LoadedModel,
    name: str,
    out: str | Path | None = None,
    text: Sequence[str | Path] = (),
    config: ActivationCalibration | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
    known: dict[Any, Any] | None = None,
) -> ActivationMethod:
    """Find the centres and thresholds of a method for a model.

    Parameters
    ----------
    loaded : LoadedModel
        Not changed.
    name : str
        "scap", "cats", "teal", "wina" or "centred".
    out : str or Path, optional
        Artifact folder; nothing is written without.
    text : sequence of paths
        Files and folders; the text that ships with the package without any.
    config : ActivationCalibration, optional
    settings : dict, optional
        Fields of the method's config.
    progress : callable, optional
        progress(done, total, what)
    known : dict, optional
        Filled with what does not depend on the target; give it to the next calibration of the same model, on the same text.

    Returns
    -------
    ActivationMethod
        With `artifact` attached if it was written.

    Raises
    ------
    ConfigError, TextError, ModelError, ArtifactError, StorageError
    """
    started, config = time.monotonic(), config or ActivationCalibration()
    made = create(method(name).name, ActivationGeometry.of(loaded.anatomy), **(settings or {}))
    if out is not None:
        check_target(out)
    check_not_shared(loaded.anatomy)
    documents = read_documents(list(text)) if text else shipped_documents()
    documents = _enough(documents, config.windows * config.length)
    windows = _windows(loaded, documents, config)
    made.to(loaded.model.device)
    if made.guided:
        _calibrate_gates(loaded, made, windows, config.target, progress)
        shares: Shares = {}
    else:
        shares, importance, centres = _shares(loaded, made, windows, config, {} if known is None else known, progress)
        _calibrate_inputs(loaded, made, windows, shares, importance, centres, progress)
    made.requires_grad_(False).eval()
    if out is not None:
        training = {
            **asdict(config),
            "seconds": round(time.monotonic() - started, 1),
            "shares": [{"layer": i, "matrix": part, "share": round(share, 4)} for (i, part), share in sorted(shares.items())],
        }
        data = {
            "sha256": hash_documents(documents),
            "documents": [{"name": d.name, "sha256": d.sha256} for d in documents],
            "tokens": windows.numel(),
            "licence": LICENCE if not text else "see the documents listed",
        }
        known = shingles(windows.flatten().numpy())
        save_pretrained(out, made, loaded, training=training, data=data, training_shingles=known)
    return made


def _windows(loaded: LoadedModel, documents: Sequence[Document], config: ActivationCalibration) -> Tensor:
    """`(windows, length)` ids, evenly spread over the text; shorter and fewer where there is not as much."""
    stream, _ = token_stream(documents, loaded.tokenizer)
    if len(stream) < 9:
        raise TextError(f"the calibration text has {len(stream)} tokens; give some hundred at least")
    length = min(config.length, loaded.anatomy.context_length, len(stream) - 1)
    starts = chunks(stream, length, min(config.windows, (len(stream) - 1) // length))
    return torch.stack([window(torch.from_numpy(stream), int(start), length, loaded.start_tokens) for start in starts])


def _enough(documents: Sequence[Document], tokens: int) -> Sequence[Document]:
    """Documents, evenly spread, with `_SPARE` times as many tokens as are wanted: to tokenise a library takes longer than all else."""
    characters = sum(len(document.text) for document in documents)
    step = max(int(characters / (_CHARACTERS * _SPARE * tokens)), 1)
    return documents[::step]


def _shares(
    loaded: LoadedModel,
    made: ActivationMethod,
    windows: Tensor,
    config: ActivationCalibration,
    known: dict[Any, Any],
    progress: Progress | None,
) -> tuple[Shares, dict[tuple[int, str], Tensor], dict[tuple[int, str], Tensor]]:
    """Shares of all matrices, what their outputs are worth where the method asks, and centres where these were chosen already."""
    step = max(len(windows) // config.gradients, 1)
    importance: dict[tuple[int, str], Tensor] = {}
    if getattr(made.config, "worth", None) == "loss":
        if "importance" not in known:
            known["importance"] = output_importance(loaded, windows[::step][: config.gradients], progress)
        importance = known["importance"]
    if made.allocation == "uniform":
        return uniform_shares(made, config.target), importance, {}
    key = (made.name, made.config)
    if made.allocation == "price":
        if key not in known:
            known[key] = matrix_costs(loaded, made, windows, importance, progress)
        shares, centres = priced(known[key], made, config.target)
        return shares, importance, centres
    if known.get(key, (-1.0,))[0] < config.target:
        known[key] = config.target, block_paths(loaded, made, windows[step // 2 :: step], config.target, importance, progress)
    return block_shares(known[key][1], config.target), importance, {}


def _calibrate_inputs(
    loaded: LoadedModel, made: ActivationMethod, windows: Tensor, shares: Shares,
    importance: dict[tuple[int, str], Tensor], centres: dict[tuple[int, str], Tensor], progress: Progress | None,
) -> None:
    """One forward over all windows; if the method is cascaded, each matrix then gets what its cut leaves."""
    total = made.geometry.layers * len(made.parts)
    done = 0

    def see(layer: int, part: str, x: Tensor, weight: Tensor) -> Tensor | None:
        nonlocal done
        if part not in made.parts:
            return None
        matrix = layer, part
        cut = find_cut(
            made, part, check_inputs(layer, part, x), weight, shares[matrix], importance.get(matrix), centres.get(matrix)
        )
        made.set_cut(layer, part, cut)
        done += 1
        if progress is not None:
            progress(done, total, "thresholds")
        return cut.pruned(x) if made.cascaded else None

    with watched_inputs(loaded.anatomy, see):
        run_base(loaded, windows)


def _calibrate_gates(loaded: LoadedModel, made: ActivationMethod, windows: Tensor, target: float, progress: Progress | None) -> None:
    anatomy, handles = loaded.anatomy, []

    def seen(layer: int) -> Callable:
        def hook(module, args, output):
            gates = anatomy.gates(output.detach()).float().abs()
            if not torch.isfinite(gates).all():
                raise ModelError(f"layer {layer}: gates are NaN or infinite on this text; the model is damaged or its dtype overflows")
            made.set_gate_cut(layer, quantile(gates, target) if target > 0 else -1.0)
            if progress is not None:
                progress(layer + 1, anatomy.layers, "thresholds")

        return hook

    try:
        handles = [anatomy.neuron_input(i).register_forward_hook(seen(i)) for i in range(anatomy.layers)]
        run_base(loaded, windows)
    finally:
        for handle in handles:
            handle.remove()
