"""Methods with weights: saving them, reading them back for their model, finding those that ship with the package."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import UNITS, Artifact, load_artifact, place, restore, save_artifact, shipped_artifact
from ..errors import ArtifactError, ConfigError
from ..models import LoadedModel
from .base import REGISTRY, UnitGeometry, UnitMethod, create, method


def save_pretrained(
    folder: str | Path,
    units: UnitMethod,
    loaded: LoadedModel,
    *,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    quality: list[dict[str, Any]] | None = None,
    training_shingles: np.ndarray | None = None,
) -> Artifact:
    """Write a method with its weights.

    Parameters
    ----------
    folder : str or Path
        New, empty, or holding an older predictor, which is replaced.
    units : UnitMethod
    loaded : LoadedModel
        The model it was made for. A name that is a local path is stored as its last part.
    training, data
        See `sparsight.artifacts.Artifact`; plain JSON values.
    quality : list of dict, optional
        Rows of rank correlations on held-out text.
    training_shingles : (shingles,) uint64, optional

    Returns
    -------
    Artifact
        As stored; also hung on `units.artifact`.

    Raises
    ------
    ArtifactError, StorageError
    """
    local = Path(loaded.name).expanduser()
    artifact = Artifact(
        method=units.name,
        settings=asdict(units.config),
        geometry=asdict(units.geometry),
        model_fingerprint=loaded.fingerprint,
        model_name=local.resolve().name if local.exists() else loaded.name,
        model_parameters=sum(p.numel() for p in loaded.model.parameters()),
        training=training or {},
        data=data or {},
        recall=quality or [],
        kind=UNITS,
    )
    units.artifact = save_artifact(folder, units, artifact, training_shingles)
    units.training_shingles = training_shingles
    return units.artifact


def from_pretrained(folder: str | Path, loaded: LoadedModel | None = None) -> UnitMethod:
    """Read a folder of `save_pretrained`.

    Parameters
    ----------
    folder : str or Path
    loaded : LoadedModel, optional
        The model to use it with; it must be of exactly this model, and goes to its device.

    Returns
    -------
    UnitMethod
        Frozen, in float32, with `artifact` and `training_shingles`.

    Raises
    ------
    ArtifactError
        If the folder is damaged, or of another model, or a predictor of tokens.
    StorageError
        If a file cannot be read.
    """
    artifact, tensors = load_artifact(folder)
    if loaded is None:
        return restore(artifact, tensors, UNITS, create, _stored_geometry, None, None)
    made = restore(artifact, tensors, UNITS, create, _stored_geometry, UnitGeometry.of(loaded.anatomy), loaded.fingerprint, loaded.name)
    return made.to(loaded.model.device)


def resolve_units(spec: str, loaded: LoadedModel) -> UnitMethod:
    """The method that a command line asks for.

    Parameters
    ----------
    spec : str
        `NAME` or a folder; for a method with weights also `NAME=FOLDER`, otherwise also `NAME:key=value,key=value`.
    loaded : LoadedModel

    Returns
    -------
    UnitMethod
        Frozen, on the model's device.

    Raises
    ------
    ConfigError
        If the method or a setting is unknown, or a value cannot be read.
    ArtifactError
        If there is no artifact of this method for this model, or the folder is not one.
    """
    if "=" not in spec and ":" not in spec and Path(spec).expanduser().is_dir() and spec not in REGISTRY.methods():
        return from_pretrained(spec, loaded)
    name, settings, folder = REGISTRY.parse(spec)
    cls = method(name)
    if not cls.learned:
        if folder is not None:
            raise ConfigError(f"method {name!r} has no weights, but {spec!r} gives a folder; write --units {name}")
        chosen = create(name, UnitGeometry.of(loaded.anatomy), **REGISTRY.typed_settings(name, settings))
        return chosen.to(loaded.model.device).requires_grad_(False).eval()
    if settings:
        raise ConfigError(f"the settings of {name!r} are fixed by its artifact, but {spec!r} gives some; write {name}=FOLDER")
    path = Path(folder) if folder is not None else shipped_artifact(UNITS, name, loaded.fingerprint)
    if path is None:
        how = "--trace TRACE " if name != "gated" else ""
        raise ArtifactError(
            f"nothing of {name!r} ships for the model {loaded.name!r} (fingerprint {loaded.fingerprint[:12]}); make it: "
            f"sparsight train --model {loaded.name} --method {name} {how}--out DIR, then use --units {name}=DIR"
        )
    made = from_pretrained(path, loaded)
    if made.name != name:
        raise ArtifactError(f"'{path}' is of the method {made.name!r}, not {name!r}; write --units {made.name}={path}")
    return made


def _stored_geometry(artifact: Artifact) -> UnitGeometry:
    sizes = dict(artifact.geometry)
    names = [f.name for f in dataclasses.fields(UnitGeometry)]
    kinds = {"gated": bool, "activation": str}
    valid = set(sizes) == set(names) and all(type(sizes[name]) is kinds.get(name, int) for name in names)
    valid = valid and all(sizes[name] >= 1 for name in names if name not in kinds)
    if not (valid and sizes["query_heads"] % sizes["kv_heads"] == 0):
        raise ArtifactError(f"{place(artifact)} has a wrong geometry; expected sizes {', '.join(names)}, got {str(sizes)[:200]}")
    return UnitGeometry(**sizes)
