"""Where the package keeps what it would otherwise make again."""

import os
from pathlib import Path


def cache_root() -> Path:
    """`$SPARSIGHT_CACHE`, else `sparsight` in `$XDG_CACHE_HOME` or `~/.cache`; it need not exist."""
    own = os.environ.get("SPARSIGHT_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "sparsight"
