"""Language models: loading them, naming them by their weights, and knowing where they keep their parts."""

from sparsight.models.anatomy import Anatomy
from sparsight.models.cache import cache_root
from sparsight.models.families import FAMILIES
from sparsight.models.fingerprint import file_sha256, fingerprint
from sparsight.models.gguf import plain_folder
from sparsight.models.load import LoadedModel, load
from sparsight.models.packaged import ALIASES
from sparsight.models.quantised import Blocks, dequantise, read_blocks

__all__ = [
    "ALIASES",
    "FAMILIES",
    "Anatomy",
    "Blocks",
    "LoadedModel",
    "cache_root",
    "dequantise",
    "file_sha256",
    "fingerprint",
    "load",
    "plain_folder",
    "read_blocks",
]
