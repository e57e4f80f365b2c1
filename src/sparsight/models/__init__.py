"""Language models: loading them, naming them by their weights, and knowing where they keep their parts."""

from sparsight.models.anatomy import Anatomy
from sparsight.models.families import FAMILIES
from sparsight.models.fingerprint import file_sha256, fingerprint
from sparsight.models.gguf import plain_folder
from sparsight.models.load import LoadedModel, load
from sparsight.models.packaged import ALIASES

__all__ = ["ALIASES", "FAMILIES", "Anatomy", "LoadedModel", "file_sha256", "fingerprint", "load", "plain_folder"]
