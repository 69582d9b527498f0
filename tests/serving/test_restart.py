"""A server process that is told to stop, killed, and started again on the same port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

HERE = Path(__file__).parent


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def start_process(tokenizer_folder: Path, port: int) -> Iterator:
    processes: list[subprocess.Popen] = []

    def begin() -> subprocess.Popen:
        command = [sys.executable, str(HERE / "serve_echo.py"), str(tokenizer_folder), str(port)]
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        processes.append(process)
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    return process
            except httpx.TransportError:
                time.sleep(0.05)

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_stopped_server_finishes_its_stream_and_a_killed_one_comes_back(start_process, port):
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def stream(words: int):
        messages = [{"role": "user", "content": "word " * words}]
        return iter(client.chat.completions.create(model="echo", messages=messages, stream=True))

    process = start_process()
    chunks = stream(20)
    next(chunks)
    process.send_signal(signal.SIGTERM)
    assert list(chunks)[-1].choices[0].finish_reason == "stop"
    assert process.wait(timeout=15) in (0, -signal.SIGTERM)

    process = start_process()
    chunks = stream(200)
    next(chunks)
    process.kill()
    with pytest.raises((httpx.TransportError, openai.APIConnectionError)):
        list(chunks)

    start_process()
    assert list(stream(3))[-1].choices[0].finish_reason == "stop"
