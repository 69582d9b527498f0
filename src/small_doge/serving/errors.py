"""Errors of the API, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: One sentence that names the mend.
        kind: OpenAI's `type`, for example "invalid_request_error".
        param: The field at fault, if one is.
        code: A word for programs, for example "model_not_found".
        retry_after: Seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that belong to the error."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The client's mistake: status 400."""
    return ApiError(400, message, param=param, code=code)


def queue_is_full(retry_after: int) -> ApiError:
    """More requests wait than the server keeps."""
    return ApiError(
        429,
        f"The queue is full: try again in {retry_after} s.",
        kind="rate_limit_error",
        code="queue_full",
        retry_after=retry_after,
    )


def shutting_down() -> ApiError:
    """The server is about to stop."""
    return ApiError(
        503, "The server is shutting down: try again later.", kind="server_error", code="shutting_down", retry_after=5
    )


def engine_failed() -> ApiError:
    """Generation broke; the log has the reason."""
    return ApiError(
        500, "Generation failed: the server's log has the reason.", kind="server_error", code="engine_failed"
    )
