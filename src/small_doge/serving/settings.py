"""What the person who starts a server decides."""

from __future__ import annotations

from dataclasses import dataclass, field

from small_doge.serving.batching import BatchLimits

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerSettings:
    """Options of a server; the defaults are safe on a machine with other users and a browser.

    Args:
        host: Address to listen on; loopback unless told.
        port: TCP port; 0 takes a free one.
        api_key_hashes: SHA-256 (hexadecimal) of the keys that are let in; none lets everyone in.
        allowed_hosts: Names that clients may call the server by (the Host header); on loopback its names, else any.
        cors_origins: Web pages of other origins that may call the API; none.
        ui: Whether the chat page is served at /.
        log_prompts: Whether prompts and answers are logged.
        max_body_bytes: Largest request body.
        body_seconds: Most time for a request body to arrive.
        request_seconds: Most time for one request; a completion that is not done by then ends with "length".
        max_completion_tokens: Most tokens of one completion, and the default where the model's context allows it.
        max_choices: Most completions of one request (`n` times the prompts).
        grace_seconds: How long running requests may go on after the server was told to stop.
        batch: Bounds of each model's batcher.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_hashes: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    ui: bool = False
    log_prompts: bool = False
    max_body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    request_seconds: float = 300.0
    max_completion_tokens: int = 2048
    max_choices: int = 16
    grace_seconds: float = 10.0
    batch: BatchLimits = field(default_factory=BatchLimits)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK
