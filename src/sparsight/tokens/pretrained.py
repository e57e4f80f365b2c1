"""Selectors with weights: saving them, reading them back for their model, finding those that ship with the package."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..artifacts import KIND, Artifact, load_artifact, place, restore, save_artifact, shipped_artifact
from ..errors import ArtifactError, ConfigError
from ..models import LoadedModel
from ..ops import INDEX_DTYPES
from .base import REGISTRY, Geometry, Selector, create, make_config, method, typed_settings


def save_pretrained(
    folder: str | Path,
    selector: Selector,
    loaded: LoadedModel,
    *,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    recall: list[dict[str, Any]] | None = None,
    training_shingles: np.ndarray | None = None,
) -> Artifact:
    """Write a trained selector; what is not given is taken from the artifact it came from, if it came from one.

    Parameters
    ----------
    folder : str or Path
        New, empty, or holding an older predictor, which is replaced.
    selector : Selector
    loaded : LoadedModel
        The model it was trained for. A name that is a local path is stored as its last part.
    training, data, recall
        See `sparsight.artifacts.Artifact`; plain JSON values.
    training_shingles : (shingles,) uint64, optional

    Returns
    -------
    Artifact
        As stored; also hung on `selector.artifact`.

    Raises
    ------
    ArtifactError, StorageError
    """
    before: Artifact | None = getattr(selector, "artifact", None)
    given = {"training": training, "data": data, "recall": recall}
    kept = {key: getattr(before, key, None) if value is None else value for key, value in given.items()}
    if training_shingles is None:
        training_shingles = getattr(selector, "training_shingles", None)
    local = Path(loaded.name).expanduser()
    artifact = Artifact(
        method=selector.name,
        settings=asdict(selector.config),
        geometry={**asdict(selector.geometry), "full_attention": list(selector.geometry.full_attention)},
        model_fingerprint=loaded.fingerprint,
        model_name=local.resolve().name if local.exists() else loaded.name,
        model_parameters=sum(p.numel() for p in loaded.model.parameters()),
        **{key: value for key, value in kept.items() if value is not None},
    )
    selector.artifact = save_artifact(folder, selector, artifact, training_shingles)
    selector.training_shingles = training_shingles
    return selector.artifact


def from_pretrained(folder: str | Path, loaded: LoadedModel | None = None) -> Selector:
    """Read a predictor folder.

    Parameters
    ----------
    folder : str or Path
    loaded : LoadedModel, optional
        The model to use it with; the predictor must be of exactly this model, and goes to its device.

    Returns
    -------
    Selector
        Frozen, in float32. `selector.artifact` is its `Artifact`, `selector.training_shingles` the hashes of the text
        it was trained on,
        `(shingles,)` uint64, or None.

    Raises
    ------
    ArtifactError
        If the folder is damaged or the predictor is of another model.
    StorageError
        If a file cannot be read.
    """
    artifact, tensors = load_artifact(folder)
    if loaded is None:
        return selector_from(artifact, tensors, None, None)
    selector = selector_from(artifact, tensors, Geometry.of(loaded.anatomy), loaded.fingerprint, loaded.name)
    return selector.to(loaded.model.device)


def selector_from(
    artifact: Artifact,
    tensors: dict[str, Tensor],
    geometry: Geometry | None,
    fingerprint: str | None,
    model_name: str = "a model",
) -> Selector:
    """The selector that an artifact and its tensors describe.

    Parameters
    ----------
    artifact, tensors
        From `sparsight.artifacts.load_artifact`.
    geometry : Geometry or None
        Of the model to use it with; None for that it was made for.
    fingerprint : str or None
        Of that model; not compared if None.
    model_name : str
        Of that model, for messages.

    Raises
    ------
    ArtifactError
    """
    return restore(artifact, tensors, KIND, create, _stored_geometry, geometry, fingerprint, model_name)


def find_shipped(name: str, fingerprint: str) -> Path | None:
    """Folder of the shipped predictor of method `name` for the model with this fingerprint, or None."""
    return shipped_artifact(KIND, name, fingerprint)


def resolve(spec: str, loaded: LoadedModel, index_dtype: str | None = None) -> Selector:
    """The selector that a command line asks for.

    Parameters
    ----------
    spec : str
        `NAME`; for a method with weights also `NAME=FOLDER`, otherwise also `NAME:key=value,key=value`.
    loaded : LoadedModel
    index_dtype : {"int8", "int4", "bf16"}, optional
        What a predictor keeps its importance keys in, in place of its own setting; nothing to other methods.

    Returns
    -------
    Selector
        Frozen, on the model's device.

    Raises
    ------
    ConfigError
        If the method or a setting is unknown, or a value cannot be read.
    ArtifactError
        If there is no predictor of this method for this model, or the folder is not one.
    """
    name, settings, folder = REGISTRY.parse(spec)
    cls = method(name.partition("+")[0])
    if not cls.learned:
        if folder is not None:
            raise ConfigError(f"method {name!r} has no weights, but {spec!r} gives a folder; write --select {name}")
        chosen = create(name, Geometry.of(loaded.anatomy), **typed_settings(name, settings))
        return chosen.to(loaded.model.device).requires_grad_(False).eval()
    if settings:
        raise ConfigError(
            f"the settings of {name!r} are fixed by its predictor, but {spec!r} gives some; write {name}=FOLDER"
        )
    path = Path(folder) if folder is not None else find_shipped(name, loaded.fingerprint)
    if path is None:
        raise ArtifactError(
            f"no predictor of {name!r} ships for the model {loaded.name!r} (fingerprint {loaded.fingerprint[:12]}); "
            "train one: "
            f"sparsight train --model {loaded.name} --method {name} --out DIR, then use --select {name}=DIR"
        )
    selector = from_pretrained(path, loaded)
    if selector.name != name:
        raise ArtifactError(
            f"predictor '{path}' is of the method {selector.name!r}, not {name!r}; write --select "
            f"{selector.name}={path}"
        )
    if index_dtype is not None:
        if index_dtype not in INDEX_DTYPES:
            raise ConfigError(f"importance keys can be kept in {', '.join(INDEX_DTYPES)}, got {index_dtype!r}; choose one of these")
        selector.config = make_config(name, {**asdict(selector.config), "index_dtype": index_dtype})
    return selector


def _stored_geometry(artifact: Artifact) -> Geometry:
    names = [f.name for f in dataclasses.fields(Geometry)]
    sizes = dict(artifact.geometry)
    layers = sizes.get("full_attention")
    numbers = [sizes.get(name) for name in names if name != "full_attention"]
    valid = set(sizes) == set(names) and all(type(n) is int and n >= 1 for n in numbers)
    valid = valid and isinstance(layers, list) and all(type(i) is int and 0 <= i < sizes["layers"] for i in layers)
    if not (valid and layers == sorted(set(layers)) and sizes["query_heads"] % sizes["kv_heads"] == 0):
        raise ArtifactError(
            f"{place(artifact)} has a wrong geometry; expected sizes {', '.join(names)}, got {str(sizes)[:200]}"
        )
    return Geometry(**{**sizes, "full_attention": tuple(layers)})
