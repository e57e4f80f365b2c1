"""Errors of a request in OpenAI's shape, with the status they are answered with."""

from __future__ import annotations

from typing import Any

from ..errors import SparsightError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(SparsightError):
    """An error that a request is answered with.

    Parameters
    ----------
    status : int
    message : str
    param : str, optional
        The field that is wrong.
    code : str, optional
        For programs to tell it by.
    retry_after : int, optional
        Seconds.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """What a client gets: `{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers


def draining() -> ApiError:
    """For a request that comes, or is not done, when the server stops."""
    return ApiError(503, "the server is stopping; ask again later", code="server_stopping", retry_after=5)


def too_slow(seconds: float) -> ApiError:
    """For a request that took longer than it may."""
    return ApiError(504, f"the answer took longer than {seconds:g} seconds; ask for fewer tokens, or at a quieter time", code="timeout")


def overloaded(most: int) -> ApiError:
    """For a request that finds `most` before it, all there may be."""
    return ApiError(
        429, f"{most} requests are being answered or wait already; ask again in a while", code="too_many_requests", retry_after=1
    )
