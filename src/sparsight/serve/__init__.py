"""An HTTP server in the shape of OpenAI's, over the native decoder, and a page that shows what was read.

`engine` decodes all running requests together in a thread of its own and knows nothing of HTTP; `app` knows nothing of decoding. What the
extra `serve` installs is imported by `app`, `server` and what they import, not by this module.
"""

from .engine import Engine
from .methods import Methods
from .settings import Settings

__all__ = ["Engine", "Methods", "Settings"]
