"""Where a server listens, who may ask, and how much."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, StorageError

KEY_VARIABLE = "SPARSIGHT_API_KEY"
_SHORTEST_KEY = 16


@dataclass(frozen=True)
class Settings:
    """Settings of a server; checked when made.

    Attributes
    ----------
    host : str
    port : int
        0 for one that is free.
    api_key : str or None
        Asked for in each request but those for the page and `/health`. Needed unless `host` is a loopback address.
    max_body_bytes : int
        Of a request.
    max_prompt_tokens, max_new_tokens : int or None
        Of a request; None for what the model's context holds.
    max_running : int
        Sequences that are decoded together.
    max_waiting : int
        Requests that wait for a place among them.
    request_seconds, body_seconds, drain_seconds : float
        For a request in all, from its last byte on; for its body to arrive; and for what runs to end when the server is told to stop.
    reading_bytes : int
        Memory for what was read by the last answers that asked for it to be kept.

    Raises
    ------
    ConfigError
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 2 << 20
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    max_running: int = 8
    max_waiting: int = 32
    request_seconds: float = 600.0
    body_seconds: float = 20.0
    drain_seconds: float = 30.0
    reading_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be from 0 (any that is free) to 65535, got {self.port}")
        for name in ("max_body_bytes", "max_prompt_tokens", "max_new_tokens", "max_running", "request_seconds", "body_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name.replace('_', '-')} must be above 0, got {value}")
        for name in ("max_waiting", "drain_seconds", "reading_bytes"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        if self.api_key is not None and (len(self.api_key) < _SHORTEST_KEY or not self.api_key.isascii() or not self.api_key.isprintable()):
            raise ConfigError(f"the API key must be at least {_SHORTEST_KEY} printable ASCII characters; `openssl rand -hex 24` makes one")
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"on {self.host} others can reach the server, so it needs an API key; set {KEY_VARIABLE} or give --api-key-file, "
                "or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_api_key(file: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key of `--api-key-file`, else of the environment, else None.

    Raises
    ------
    StorageError
        If the file cannot be read. No message holds what is in it.
    ConfigError
        If it is empty.
    """
    if file is None:
        return environment.get(KEY_VARIABLE) or None
    try:
        key = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"the API key file '{file}' is not text; write a key into it, with a line end or without") from None
    except OSError as error:
        raise StorageError(f"the API key file '{file}' cannot be read: {error.strerror}; check the path and its rights") from None
    if not key:
        raise ConfigError(f"the API key file '{file}' is empty; write a key into it")
    return key
