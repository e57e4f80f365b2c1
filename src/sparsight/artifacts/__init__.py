"""Predictors on disk: atomic files, checked reading, model cards. Nothing here is ever unpickled."""

from .card import model_card
from .files import read_bytes, sha256_bytes, write_atomically, write_folder_atomically
from .store import FORMAT, SHINGLES, Artifact, check_target, load_artifact, save_artifact

__all__ = [
    "FORMAT",
    "SHINGLES",
    "Artifact",
    "check_target",
    "load_artifact",
    "model_card",
    "read_bytes",
    "save_artifact",
    "sha256_bytes",
    "write_atomically",
    "write_folder_atomically",
]
