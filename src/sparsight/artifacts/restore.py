"""From an artifact back to what it describes, for its model; and the artifacts that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ArtifactError, ConfigError, StorageError
from .files import ACTIVATIONS, KIND, UNITS, read_bytes
from .store import SHINGLES, Artifact


def restore(
    artifact: Artifact,
    tensors: dict[str, Tensor],
    kind: str,
    create: Callable[..., nn.Module],
    stored_geometry: Callable[[Artifact], Any],
    geometry: Any,
    fingerprint: str | None,
    model_name: str = "a model",
) -> nn.Module:
    """The method that an artifact and its tensors describe, frozen, in float32.

    Parameters
    ----------
    artifact, tensors
        From `load_artifact`.
    kind : str
        Of the artifact that is expected.
    create : callable
        create(name, geometry, **settings) makes it untrained.
    stored_geometry : callable
        Gives the sizes of the model that an artifact was made for.
    geometry
        Of the model to use it with; None for those.
    fingerprint : str or None
        Of the model to use it with; not compared if None.
    model_name : str
        Of that model, for messages.

    Raises
    ------
    ArtifactError
    """
    where = place(artifact)
    if artifact.kind != kind:
        right = option(artifact.kind)
        spec = artifact.folder if artifact.kind == ACTIVATIONS else f"{artifact.method}={artifact.folder}"
        raise ArtifactError(f"{where} is for {right}, not for {option(kind)}; write {right} {spec}")
    if fingerprint is not None and fingerprint != artifact.model_fingerprint:
        raise ArtifactError(
            f"{where} is for the model {artifact.model_name!r} (fingerprint {artifact.model_fingerprint[:12]}), but "
            "came with "
            f"{model_name!r} (fingerprint {fingerprint[:12]}); use one of this model, or make it: sparsight "
            f"{'calibrate' if kind == ACTIVATIONS else 'train'} --model {model_name} --method {artifact.method} --out DIR"
        )
    stored = stored_geometry(artifact)
    geometry = stored if geometry is None else geometry
    if stored != geometry:
        raise ArtifactError(f"{where} is for {stored}, but the model is {geometry}; use a predictor of this model")
    try:
        # Without memory, so that sizes are compared with the tensors that came before anything is allocated.
        with torch.device("meta"):
            made = create(artifact.method, geometry, **artifact.settings)
    except ConfigError as error:
        raise ArtifactError(f"{where}: {error}") from error
    except (RuntimeError, TypeError) as error:
        raise ArtifactError(f"{where} has settings of an impossible size ({error}); get the predictor again") from error
    if not made.learned:
        raise ArtifactError(
            f"{where} is of the method {artifact.method!r}, which has no weights; use {option(kind)} {artifact.method}"
        )
    weights = {name: tensor for name, tensor in tensors.items() if name != SHINGLES}
    _check_tensors(where, made.state_dict(), weights)
    made.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    made.requires_grad_(False).eval()
    made.artifact = artifact
    known = tensors.get(SHINGLES)
    if known is not None and (known.dtype != torch.int64 or known.dim() != 1):
        raise ArtifactError(
            f"{where}: expected {SHINGLES!r} to be (shingles,) int64, got {tuple(known.shape)} {known.dtype}"
        )
    made.training_shingles = None if known is None else known.numpy().view(np.uint64)
    return made


def place(artifact: Artifact) -> str:
    """What an artifact is called in messages."""
    return f"the predictor of {artifact.method!r}" if artifact.folder is None else f"predictor '{artifact.folder}'"


def option(kind: str) -> str:
    """The command line's option that takes artifacts of a kind."""
    return {KIND: "--select", UNITS: "--units", ACTIVATIONS: "--activations"}[kind]


def shipped_artifact(kind: str, name: str, fingerprint: str) -> Path | None:
    """Folder of the artifact of method `name` that ships for the model with this fingerprint, or None."""
    for config in sorted(_shipped_folder().glob("*/config.json")):
        try:
            fields = json.loads(read_bytes(config))
        except (StorageError, ValueError, RecursionError):
            continue
        if not isinstance(fields, dict):
            continue
        if (fields.get("kind"), fields.get("method"), fields.get("model_fingerprint")) == (kind, name, fingerprint):
            return config.parent
    return None


def _shipped_folder() -> Path:
    return Path(str(files("sparsight") / "predictors"))


def _check_tensors(where: str, expected: dict[str, Tensor], came: dict[str, Tensor]) -> None:
    for name in sorted(expected.keys() | came.keys()):
        if name not in came or name not in expected:
            what = "lacks the tensor" if name not in came else "has a tensor too many,"
            raise ArtifactError(
                f"{where} {what} {name!r}; its config.json and weights do not belong together: get it again"
            )
        tensor, shape = came[name], tuple(expected[name].shape)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ArtifactError(
                f"{where}: expected {name!r} to be {shape} of floating point, got {tuple(tensor.shape)} "
                f"{tensor.dtype}; get it again"
            )
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{where}: the tensor {name!r} holds values that are not finite; train it again")
        if name.endswith("key_scales") and not (tensor > 0).all():
            raise ArtifactError(f"{where}: the scales {name!r} are not all positive; train it again")
