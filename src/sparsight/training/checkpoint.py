"""Checkpoints of a training run: safetensors and JSON, written atomically, so that a kill loses at most the interval between two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ..artifacts.files import read_bytes, sha256_bytes, write_atomically
from ..errors import ArtifactError

FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path, selector: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write weights, optimizer state and progress as one file."""
    tensors = {f"weight.{name}": t.detach().contiguous() for name, t in selector.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": torch.as_tensor(value).contiguous() for key, value in state.items()}
    text = json.dumps(progress)
    # safetensors has no checksum of its own; the tensors' bytes are the same with and without metadata.
    digest = _digest(text, save(tensors))
    write_atomically(folder / FILE, save(tensors, metadata={"progress": text, "sha256": digest}))


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a run to go on with."""
    return (folder / FILE).exists()


def load_checkpoint(
    folder: Path, selector: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> dict[str, Any] | None:
    """Restore a run; None if there is no checkpoint.

    Raises
    ------
    ArtifactError
        If the checkpoint is damaged or of a run with another identity (model, text, settings).
    """
    path = folder / FILE
    if not path.exists():
        return None
    data = read_bytes(path)
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if _digest(metadata["progress"], data) != metadata["sha256"]:
            raise ValueError("another checksum")
        progress = json.loads(metadata["progress"])
    except Exception as error:
        raise ArtifactError(
            f"checkpoint {path} is damaged ({type(error).__name__}); delete it and train without --resume"
        ) from None
    different = [key for key, value in identity.items() if progress.get("identity", {}).get(key) != value]
    if different:
        raise ArtifactError(
            f"checkpoint {path} belongs to a run with another {', '.join(different)}; use the same arguments, or another --out"
        )
    weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
    selector.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            state.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _digest(progress: str, data: bytes) -> str:
    """SHA-256 of the progress and of the tensors' bytes, which follow the header of a safetensors file."""
    return sha256_bytes(progress.encode("utf-8") + data[8 + int.from_bytes(data[:8], "little") :])
