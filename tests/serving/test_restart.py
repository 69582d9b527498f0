"""A server process that is told to stop, killed, and started again on the same port."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import httpx
import openai
import pytest
from processes import free_port, process


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def start_process(tokenizer_folder: Path, port: int) -> Iterator[Callable[[], Popen]]:
    command = [str(Path(__file__).parent / "serve_echo.py"), str(tokenizer_folder), str(port)]
    with ExitStack() as stack:
        yield lambda: stack.enter_context(process(command, port))


@pytest.mark.slow
def test_a_stopped_server_finishes_its_stream_and_a_killed_one_comes_back(start_process, port):
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def stream(words: int):
        messages = [{"role": "user", "content": "word " * words}]
        return iter(client.chat.completions.create(model="echo", messages=messages, stream=True))

    running = start_process()
    chunks = stream(20)
    next(chunks)
    running.send_signal(signal.SIGTERM)
    assert list(chunks)[-1].choices[0].finish_reason == "stop"
    assert running.wait(timeout=15) in (0, -signal.SIGTERM)

    running = start_process()
    chunks = stream(200)
    next(chunks)
    running.kill()
    with pytest.raises((httpx.TransportError, openai.APIConnectionError)):
        list(chunks)

    start_process()
    assert list(stream(3))[-1].choices[0].finish_reason == "stop"
