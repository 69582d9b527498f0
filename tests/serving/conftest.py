"""Servers on ephemeral loopback ports, in this process."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from engines import EchoEngine, TinyEngine
from transformers import AutoTokenizer

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


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(tokenizer_folder))


@contextmanager
def running(models: dict[str, Any], context: int = 2048, **options: Any) -> Iterator[RunningServer]:
    settings = ServerSettings(**{"port": 0, "batch": LIMITS, "grace_seconds": 1.0, **options})
    server = RunningServer(models, settings, context)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def start(tokenizer: Any) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with an echo model; they are stopped after the test. `seconds` is the time of a token."""
    with ExitStack() as stack:

        def begin(seconds: float = 0.0, limits: dict[str, Any] | None = None, **options: Any) -> RunningServer:
            batch = dataclasses.replace(LIMITS, **(limits or {}))
            return stack.enter_context(running({"echo": EchoEngine(tokenizer, seconds)}, batch=batch, **options))

        yield begin


@pytest.fixture(scope="package")
def server(tokenizer: Any, model_folder: Path) -> Iterator[RunningServer]:
    """A server with the echo model and a tiny real one, shared by the tests that leave no mark on it."""
    models = {"echo": EchoEngine(tokenizer), "org/tiny": TinyEngine(model_folder)}
    with running(models) as server:
        yield server


@pytest.fixture(scope="package")
def client(server: RunningServer) -> openai.OpenAI:
    return server.client()
