"""Predictors on disk: atomic files, checked reading, model cards. Nothing here is ever unpickled."""

from .card import model_card
from .files import ACTIVATIONS, KIND, UNITS, read_bytes, sha256_bytes, write_atomically, write_folder_atomically
from .restore import option, place, restore, shipped_artifact
from .store import FORMAT, SHINGLES, Artifact, check_target, load_artifact, save_artifact

__all__ = [
    "ACTIVATIONS",
    "FORMAT",
    "KIND",
    "SHINGLES",
    "UNITS",
    "Artifact",
    "check_target",
    "load_artifact",
    "model_card",
    "option",
    "place",
    "read_bytes",
    "restore",
    "save_artifact",
    "sha256_bytes",
    "shipped_artifact",
    "write_atomically",
    "write_folder_atomically",
]
