"""Runs the application on a socket, and stops it without cutting answers short."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Sequence

import uvicorn
from fastapi import FastAPI

from small_doge.serving.app import create_app
from small_doge.serving.metrics import Metrics
from small_doge.serving.models import load_model
from small_doge.serving.settings import ServerSettings

logger = logging.getLogger(__name__)
# After the last answer is over, connections that only wait (the chat page's) have this long to close.
CLOSING_SECONDS = 2


class GracefulServer(uvicorn.Server):
    """A server that tells the application first when it is to stop."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        assert isinstance(app, FastAPI)
        app.state.service.begin_shutdown()
        await super().shutdown(sockets)


def make_server(app: FastAPI, settings: ServerSettings) -> GracefulServer:
    """A server for an application that `create_app` made."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(settings.grace_seconds) + CLOSING_SECONDS,
    )
    return GracefulServer(config)


def check_settings(settings: ServerSettings, open_to_all: bool) -> None:
    """Refuse to let other machines in without a key.

    Raises:
        ValueError: the address is not loopback and there is no key, unless `open_to_all`.
    """
    if not settings.is_loopback and not settings.api_key_hashes and not open_to_all:
        raise ValueError(
            f"{settings.host} lets other machines in: give --api-key-file, or --open-to-all if everyone may come."
        )


def bound_socket(settings: ServerSettings) -> socket.socket:
    """The socket that the server will listen on, taken before models are loaded.

    Raises:
        ValueError: the address is another program's, not this machine's, or not ours to take.
    """
    taken = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((settings.host, settings.port))
    except OSError as error:
        taken.close()
        raise ValueError(
            f"cannot listen on {settings.host}, port {settings.port} ({error.strerror}): give another --port or --host."
        ) from None
    return taken


def serve(models: Sequence[str], settings: ServerSettings, device: str, dtype: str | None) -> None:
    """Load models (`NAME=PATH` or `PATH`) and serve them until the process is told to stop.

    Raises:
        ValueError: what `bound_socket`, `load_model` and `ModelList` refuse.
    """
    taken = bound_socket(settings)
    metrics = Metrics()
    loaded = [load_model(spec, device, dtype, settings.batch, metrics.for_model) for spec in models]
    app = create_app(loaded, settings, metrics)
    for model in loaded:
        logger.info("serving %s (context %d tokens)", model.name, model.context)
    # What is loaded stays: a full collection that looked through it would hold everyone up for 0.3 s.
    gc.collect()
    gc.freeze()
    logger.info("listening on http://%s:%d", settings.host, settings.port)
    make_server(app, settings).run(sockets=[taken])
