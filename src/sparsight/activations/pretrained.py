"""Centres and thresholds on disk: saving them, reading them back for their model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import ACTIVATIONS, Artifact, load_artifact, place, restore, save_artifact
from ..errors import ArtifactError
from ..models import LoadedModel
from .base import ActivationGeometry, ActivationMethod, as_geometry, create


def save_pretrained(
    folder: str | Path,
    activations: ActivationMethod,
    loaded: LoadedModel,
    *,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    training_shingles: np.ndarray | None = None,
) -> Artifact:
    """Write a method with its centres and thresholds.

    Parameters
    ----------
    folder : str or Path
        New, empty, or holding an older artifact, which is replaced.
    activations : ActivationMethod
    loaded : LoadedModel
        The model it was calibrated for. A name that is a local path is stored as its last part.
    training, data
        See `sparsight.artifacts.Artifact`; plain JSON values.
    training_shingles : (shingles,) uint64, optional

    Returns
    -------
    Artifact
        As stored; also hung on `activations.artifact`.

    Raises
    ------
    ArtifactError, StorageError
    """
    local = Path(loaded.name).expanduser()
    artifact = Artifact(
        method=activations.name,
        settings=asdict(activations.config),
        geometry=asdict(activations.geometry),
        model_fingerprint=loaded.fingerprint,
        model_name=local.resolve().name if local.exists() else loaded.name,
        model_parameters=sum(p.numel() for p in loaded.model.parameters()),
        training=training or {},
        data=data or {},
        kind=ACTIVATIONS,
    )
    activations.artifact = save_artifact(folder, activations, artifact, training_shingles)
    activations.training_shingles = training_shingles
    return activations.artifact


def from_pretrained(folder: str | Path, loaded: LoadedModel | None = None) -> ActivationMethod:
    """Read a folder of `save_pretrained`.

    Parameters
    ----------
    folder : str or Path
    loaded : LoadedModel, optional
        The model to use it with; it must be of exactly this model, and goes to its device.

    Returns
    -------
    ActivationMethod
        With `artifact` and `training_shingles`.

    Raises
    ------
    ArtifactError
        If the folder is damaged, or of another model, or of another kind.
    StorageError
        If a file cannot be read.
    """
    artifact, tensors = load_artifact(folder)
    if loaded is None:
        return restore(artifact, tensors, ACTIVATIONS, create, _stored_geometry, None, None)
    geometry = ActivationGeometry.of(loaded.anatomy)
    made = restore(artifact, tensors, ACTIVATIONS, create, _stored_geometry, geometry, loaded.fingerprint, loaded.name)
    return made.to(loaded.model.device)


def _stored_geometry(artifact: Artifact) -> ActivationGeometry:
    geometry = as_geometry(dict(artifact.geometry))
    if geometry is None:
        raise ArtifactError(f"{place(artifact)} has a wrong geometry, {str(artifact.geometry)[:200]}; calibrate it again")
    return geometry
