"""Servers for the tests: an echo of the question, and a tiny real model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from engines import EchoEngine, TinyEngine
from servers import LIMITS, RunningServer, running
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(tokenizer_folder))


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
