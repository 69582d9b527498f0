"""A server on an ephemeral loopback port, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai

from small_doge.serving.app import create_app
from small_doge.serving.batching import BatchLimits
from small_doge.serving.metrics import Metrics
from small_doge.serving.models import ServedModel
from small_doge.serving.server import make_server
from small_doge.serving.settings import ServerSettings

LIMITS = BatchLimits(rows=4, cache_rows=3, queue=8)


class RunningServer:
    """A server in a thread."""

    def __init__(self, models: dict[str, Any], settings: ServerSettings, context: int = 2048) -> None:
        metrics = Metrics()
        self.models = {
            name: ServedModel(name, engine, context, len(engine.tokenizer), settings.batch, metrics.for_model(name))
            for name, engine in models.items()
        }
        self.app = create_app(list(self.models.values()), settings, metrics)
        self.server = make_server(self.app, settings)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started:
            assert time.monotonic() < deadline and self.thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()


@contextmanager
def running(models: dict[str, Any], context: int = 2048, **options: Any) -> Iterator[RunningServer]:
    settings = ServerSettings(**{"port": 0, "batch": LIMITS, "grace_seconds": 1.0, **options})
    server = RunningServer(models, settings, context)
    try:
        yield server
    finally:
        server.stop()
