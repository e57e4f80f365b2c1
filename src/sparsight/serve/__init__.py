"""An HTTP server in the shape of OpenAI's, over the native decoder, and a page that shows what was read.

`engine` decodes all running requests together in a thread of its own and knows nothing of HTTP; `app` knows nothing of decoding. FastAPI and
uvicorn are imported when they are needed, by `app` and `server` alone.
"""

from .engine import Engine
from .methods import Methods
from .settings import Settings

__all__ = ["Engine", "Methods", "Settings"]
