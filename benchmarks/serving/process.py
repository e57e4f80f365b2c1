"""A server in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass
class Server:
    """A server that runs."""

    url: str
    process: subprocess.Popen
    told: bool = False

    @property
    def memory(self) -> int:
        """Bytes of the process that are its own."""
        return psutil.Process(self.process.pid).memory_full_info().uss

    def tell(self) -> None:
        """Send it SIGTERM, once."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def stop(self, seconds: float = 60) -> tuple[int, str]:
        """Ask it to stop, if it was not asked yet; its exit status, and what it said since it was ready."""
        self.tell()
        return self.process.wait(seconds), self.process.stderr.read()


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[Server]:
    """`sparsight serve` with these arguments, on a port that is free."""
    command = [sys.executable, "-m", "sparsight", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
        try:
            line = process.stderr.readline()
            if (found := re.search(r"page at (http://\S+)/,", line)) is None:
                raise RuntimeError(f"the server did not start: {line.strip()}")
            yield Server(found[1], process)
        finally:
            if process.poll() is None:
                process.kill()
