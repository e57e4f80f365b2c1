"""A predictor on disk: `config.json`, `model.safetensors` and a model card, checked from end to end when it is read."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ..errors import ArtifactError
from .card import model_card
from .files import KIND, KINDS, check_replaceable, read_bytes, sha256_bytes, write_folder_atomically

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
SHINGLES = "training_shingles"
"""Name of the tensor that holds hashes of the training text; no weight is called so."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_NEVER = "pickle is never read, because it can run code"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass
class Artifact:
    """All that is known of a predictor beside its weights.

    Attributes
    ----------
    method : str
        Registered name.
    settings : dict
        Fields of the method's config.
    geometry : dict
        Sizes of the model it is for.
    model_fingerprint : str
        `sparsight.models.fingerprint` of that model, 64 hexadecimal digits.
    model_name : str
    training : dict
        How it was trained: the training config, `tokens`, `seconds`, `history`.
    data : dict
        What it was trained on: hash of the text, list of documents with their hashes, source and licence.
    recall : list of dict
        Rows of the table of attention-mass recall, or empty.
    parameters, model_parameters : int
        Parameters of the predictor and of the model (0 if not known).
    versions : dict of str to str
        Packages it was made with.
    format : int
        Of the files.
    sha256 : str
        Of `model.safetensors`; set when saved.
    settings_sha256 : str
        Of method, settings, geometry and model fingerprint, without which the weights mean something else; set when saved.
    kind : str
        What it predicts: `KIND` for tokens, `UNITS` for heads and neurons.
    folder : Path or None
        Where it was read from; not stored.
    """

    method: str
    settings: dict[str, Any]
    geometry: dict[str, Any]
    model_fingerprint: str
    model_name: str
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    recall: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0
    model_parameters: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    sha256: str = ""
    settings_sha256: str = ""
    kind: str = KIND
    folder: Path | None = field(default=None, compare=False, repr=False)


_TYPES: dict[str, type] = {
    "kind": str,
    "method": str,
    "settings": dict,
    "geometry": dict,
    "model_fingerprint": str,
    "model_name": str,
    "training": dict,
    "data": dict,
    "recall": list,
    "parameters": int,
    "model_parameters": int,
    "versions": dict,
    "format": int,
    "sha256": str,
    "settings_sha256": str,
}
_SETTINGS = ("method", "settings", "geometry", "model_fingerprint")


def save_artifact(
    folder: str | Path, selector: nn.Module, artifact: Artifact, training_shingles: np.ndarray | None = None
) -> Artifact:
    """Write a predictor folder atomically.

    Parameters
    ----------
    folder : str or Path
        New, empty, or holding an older predictor, which is replaced.
    selector : nn.Module
        Its parameters are stored in bfloat16, its buffers in float32.
    artifact : Artifact
        `versions`, `format`, `parameters` and `sha256` are filled in.
    training_shingles : (shingles,) uint64, optional
        Hashes of the training text (`sparsight.training.shingles`), by which evaluation can refuse text that was
        trained on.

    Returns
    -------
    Artifact
        As stored.

    Raises
    ------
    ArtifactError
        If a weight is not finite, or `folder` holds something else.
    StorageError
        If the folder cannot be written.
    """
    check_target(folder)
    parameters = dict(selector.named_parameters())
    tensors: dict[str, Tensor] = {}
    for name, tensor in selector.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(
                f"the predictor's tensor {name!r} holds values that are not finite, so it was not saved; train it again"
            )
        tensors[name] = tensor.detach().cpu().to(torch.bfloat16 if name in parameters else torch.float32).contiguous()
    if training_shingles is not None:
        tensors[SHINGLES] = torch.from_numpy(np.array(training_shingles, dtype=np.uint64).view(np.int64))
    weights = save(tensors, metadata={"format": "pt"})
    stored = dataclasses.replace(
        artifact,
        parameters=sum(p.numel() for p in parameters.values()),
        versions=_versions(),
        format=FORMAT,
        sha256=sha256_bytes(weights),
    )
    stored.settings_sha256 = _settings_hash(dataclasses.asdict(stored))
    fields = {name: getattr(stored, name) for name in _TYPES}
    config = json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # As it will be read again: tuples have become lists.
    stored = Artifact(**json.loads(config), folder=Path(folder))
    write_folder_atomically(folder, {CONFIG: config, WEIGHTS: weights, CARD: model_card(stored)})
    return stored


def check_target(folder: str | Path) -> None:
    """Raise `ArtifactError` unless `save_artifact` may write to `folder`; ask before a long training, not after it."""
    check_replaceable(folder, (CONFIG, WEIGHTS, CARD))


def load_artifact(folder: str | Path) -> tuple[Artifact, dict[str, Tensor]]:
    """Read and check a predictor folder.

    Returns
    -------
    artifact : Artifact
    tensors : dict of str to Tensor
        As stored, on the CPU; `training_shingles`, if there, is int64 (shingles,).

    Raises
    ------
    ArtifactError
        If a file is missing, damaged, altered, pickled, or of a newer format.
    StorageError
        If a file cannot be read.
    """
    folder = Path(folder).expanduser()
    _check_files(folder)
    artifact = _read_config(folder)
    path = folder / WEIGHTS
    data = read_bytes(path)
    # A safetensors file has its JSON header from byte 8 on, whatever its length in the first 8 bytes looks like.
    if data[8:9] != b"{" and (data[:2] == b"PK" or (data[:1] == b"\x80" and data[1:2] <= b"\x05")):
        raise ArtifactError(f"'{path}' is a pickle in disguise; {_NEVER}; get the predictor again or train it")
    found = sha256_bytes(data)
    if found != artifact.sha256:
        raise ArtifactError(
            f"'{path}' is truncated or altered: {len(data)} bytes with SHA-256 {found[:12]}, but {CONFIG} says "
            f"{artifact.sha256[:12]}; "
            "get the predictor again or train it"
        )
    try:
        tensors = load(data)
    except Exception as error:  # safetensors raises errors of its own and of Python for a bad header
        kind = type(error).__name__
        raise ArtifactError(f"'{path}' is no safetensors file ({kind}); get the predictor again") from error
    return artifact, tensors


def _check_files(folder: Path) -> None:
    if folder.is_file():
        pickled = f"; {_NEVER}" if folder.suffix in _PICKLES else ""
        raise ArtifactError(f"'{folder}' is a file, but a predictor is a folder with {CONFIG} and {WEIGHTS}{pickled}")
    if not folder.is_dir():
        raise ArtifactError(f"no predictor at '{folder}'; expected a folder with {CONFIG} and {WEIGHTS}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _PICKLES)
            why = f"it has {pickles[0]}, but {_NEVER}" if pickles else "expected a folder that 'sparsight train' wrote"
            raise ArtifactError(f"predictor '{folder}' has no {name}; {why}")


def _read_config(folder: Path) -> Artifact:
    path = folder / CONFIG
    try:
        fields = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is not valid JSON ({error}); get the predictor again") from error
    if not isinstance(fields, dict) or fields.get("kind") not in KINDS:
        raise ArtifactError(
            f"'{path}' does not describe a predictor of sparsight (its \"kind\" is not {' or '.join(KINDS)}); give another folder"
        )
    stored = fields.get("format")
    if type(stored) is int and stored > FORMAT:
        raise ArtifactError(
            f"predictor '{folder}' has format {stored}, newer than {FORMAT}, the newest known here; upgrade sparsight"
        )
    unknown = sorted(set(fields) - set(_TYPES))
    if unknown:
        raise ArtifactError(
            f"'{path}' has the unknown key {unknown[0]!r}; if a newer version wrote it, upgrade sparsight"
        )
    for name, kind in _TYPES.items():
        if name not in fields:
            raise ArtifactError(f"'{path}' lacks the key {name!r}; get the predictor again")
        if type(fields[name]) is not kind:
            raise ArtifactError(
                f"'{path}': expected {name!r} to be a {kind.__name__}, got {_short(fields[name])}; get the predictor "
                "again"
            )
    for name in ("model_fingerprint", "sha256", "settings_sha256"):
        if not _HASH.fullmatch(fields[name]):
            raise ArtifactError(f"'{path}': expected {name!r} to be 64 hexadecimal digits, got {_short(fields[name])}")
    if fields["format"] < 1 or not all(isinstance(row, dict) for row in fields["recall"]):
        wrong = "format" if fields["format"] < 1 else "recall"
        raise ArtifactError(
            f"'{path}': the key {wrong!r} has a value out of range, {_short(fields[wrong])}; get the predictor again"
        )
    if _settings_hash(fields) != fields["settings_sha256"]:
        raise ArtifactError(
            f"'{path}' was altered: {', '.join(_SETTINGS)} are not what was saved; get the predictor again"
        )
    return Artifact(**fields, folder=folder)


def _settings_hash(fields: dict[str, Any]) -> str:
    return sha256_bytes(json.dumps([fields[name] for name in _SETTINGS], sort_keys=True).encode())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("sparsight", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
