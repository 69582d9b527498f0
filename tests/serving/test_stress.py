"""A crowd on two cores: nothing is lost, memory stays flat, and the server answers others meanwhile."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import psutil
import pytest
from processes import free_port, process

STREAMS, ROWS = 200, 64
MIB = 2**20


@pytest.mark.slow
def test_two_hundred_streams_of_which_half_leave(model_folder: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "small_doge.cli", "serve", f"tiny={model_folder}", "--device", "cpu", "--port", str(port)]
    command += ["--rows", str(ROWS), "--cache-rows", "8", "--queue", str(STREAMS)]
    with process(command, port) as started:
        server = psutil.Process(started.pid)
        asyncio.run(crowd(url))  # the first one fills caches and allocators
        before = server.memory_info().rss
        with watched(url) as health:
            for _ in range(5):
                finished, left, seconds = asyncio.run(crowd(url))
                print(f"a crowd was served in {seconds:.1f} s")
                assert finished == left == STREAMS // 2
        grown = (server.memory_info().rss - before) / MIB
    late = statistics.quantiles(health, n=20)[-1]
    print(
        f"/health: median {statistics.median(health):.1f} ms, 95 % {late:.1f} ms, worst {max(health):.1f} ms "
        f"of {len(health)}; memory grew by {grown:.1f} MiB from {before / MIB:.0f} MiB"
    )
    # The goal of the server among a crowd, and twice what is measured with the crowd on the same two cores.
    assert late < 50
    assert grown < 16


@contextmanager
def watched(url: str) -> Iterator[list[float]]:
    """Milliseconds of each look at /health while the block runs, by a process that does nothing else."""
    figures: list[float] = []
    ours, theirs = multiprocessing.Pipe()
    watcher = multiprocessing.get_context("spawn").Process(target=watch, args=(url, theirs))
    watcher.start()
    assert ours.poll(60) and ours.recv() == "ready"
    yield figures
    ours.send("enough")
    figures += ours.recv()
    watcher.join()


def watch(url: str, asked: Connection) -> None:
    figures: list[float] = []
    with httpx.Client(base_url=url, timeout=10) as client:
        client.get("/health")
        asked.send("ready")
        while not asked.poll(0.05):
            start = time.monotonic()
            assert client.get("/health").status_code == 200
            figures.append(1000 * (time.monotonic() - start))
    asked.send(figures)


async def crowd(url: str) -> tuple[int, int, float]:
    """Finished streams, streams left early, and seconds in all; returns once every row is free again."""
    start = time.monotonic()
    limits = httpx.Limits(max_connections=STREAMS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        ends = await asyncio.gather(*(stream(client, number) for number in range(STREAMS)))
        seconds = time.monotonic() - start
        deadline = time.monotonic() + 10
        while await at_work(client):
            assert time.monotonic() < deadline, "rows were not freed"
            await asyncio.sleep(0.01)
    return ends.count("finished"), ends.count("left"), seconds


async def at_work(client: httpx.AsyncClient) -> float:
    """Completions that run or wait."""
    metrics = (await client.get("/metrics")).text
    return sum(map(float, re.findall(r"^small_doge_(?:running|waiting)\{.*\} (\S+)", metrics, re.M)))


async def stream(client: httpx.AsyncClient, number: int) -> str:
    """Read one stream, whole if the number is even; only its beginning if it is odd."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"Tell me story number {number}."}],
        "max_tokens": 40,
        "logit_bias": {"1": -100} if number % 4 == 0 else None,  # some are sampled by the server, and never end early
        "seed": number,
        "stream": True,
    }
    last = ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        seen = 0
        async for line in response.aiter_lines():
            if not line:
                continue
            seen += 1
            last = line
            if number % 2 and seen == 4:
                return "left"
    return "finished" if last == "data: [DONE]" else f"broken: {last}"
