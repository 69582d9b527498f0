"""Who may call, by which name, and how much they may send: checks in front of every route."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from small_doge.serving.errors import ApiError
from small_doge.serving.settings import LOOPBACK, ServerSettings

KEYS_VARIABLE = "SMALL_DOGE_API_KEYS"
SHORTEST_KEY = 16
# The chat page and its files come without a key: gradio asks for it by itself.
GUARDED = ("/v1", "/metrics", "/openapi.json")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Whatever a page or an answer contains, the browser asks nobody but this server.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
        "font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
    ),
}


def hash_key(key: str) -> str:
    """SHA-256 of an API key, in hexadecimal. Keys are long and random, so that a slow hash would bring nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(file: Path | None, environment: str | None = None) -> tuple[str, ...]:
    """Hashes of the keys in a file (one a line, plain or as `sha256:HEX`) and in the environment (by commas).

    Raises:
        ValueError: a key that is too short, or a file that is not there or without any.
    """
    if file is not None and not file.is_file():
        raise ValueError(f"there is no file {file}: write the API keys into one, one a line.")
    lines = [] if file is None else [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if file is not None and not lines:
        raise ValueError(f"{file} holds no API key: write one a line.")
    given = os.environ.get(KEYS_VARIABLE, "") if environment is None else environment
    lines += [key.strip() for key in given.split(",") if key.strip()]
    for line in lines:
        if len(line) < SHORTEST_KEY:
            raise ValueError(
                f"an API key is shorter than {SHORTEST_KEY} characters: make one with `openssl rand -hex 24`."
            )
    return tuple(line.removeprefix("sha256:") if line.startswith("sha256:") else hash_key(line) for line in lines)


def admits(hashes: Iterable[str], key: str) -> bool:
    """Whether a key is one of those known; takes the same time whichever it is."""
    given = hash_key(key)
    matches = [hmac.compare_digest(given, known) for known in hashes]
    return any(matches)


class Guard:
    """ASGI middleware: checks the Host header, the key, the content type, and the size and pace of the body.

    Args:
        app: What comes behind it.
        settings: The server's options.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings
        self.hosts = set(settings.allowed_hosts)
        if settings.is_loopback:
            self.hosts |= set(LOOPBACK)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
            body = await self._read(receive, Headers(scope=scope))
        except ApiError as error:
            # The rest of the body is not read, so the connection has no further use.
            response = JSONResponse(error.body(), error.status, {**error.headers(), "Connection": "close"})
            await response(scope, receive, send_with_headers)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), send_with_headers)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = _host_name(headers.get("host", ""))
        if self.hosts and host not in self.hosts:
            # A page of another site that has its name resolve to this machine (DNS rebinding) ends here.
            raise ApiError(
                421, f"This server is not called {host[:100]!r}: name it with --allowed-host.", code="wrong_host"
            )
        guarded = any(path == prefix or path.startswith(prefix + "/") for prefix in GUARDED)
        if not guarded:
            return
        if self.settings.api_key_hashes and not (method == "OPTIONS" and self.settings.cors_origins):
            kind, _, key = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not admits(self.settings.api_key_hashes, key.strip()):
                raise ApiError(401, "A valid API key is needed: send it as a Bearer token.", code="invalid_api_key")
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and content_type != "application/json":
            # A form of another site can post text, but not JSON, without asking first.
            raise ApiError(415, "The body must be JSON: send Content-Type: application/json.")

    async def _read(self, receive: Receive, headers: Headers) -> bytes | None:
        """The whole body, or None where the client left."""
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.settings.max_body_bytes:
            raise self._too_large()
        try:
            # asyncio.wait_for makes a task before Python 3.12: three rounds of the event loop more for each request.
            with anyio.fail_after(self.settings.body_seconds):
                return await self._collect(receive)
        except TimeoutError:
            raise ApiError(408, "The body took too long to arrive: send it faster.", code="request_timeout") from None

    async def _collect(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.settings.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ApiError:
        limit = self.settings.max_body_bytes
        return ApiError(413, f"The body is larger than {limit} bytes: send less.", code="request_too_large")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body read before, and then what the client does next."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _host_name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
