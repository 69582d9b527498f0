"""A crowd on two cores: nothing is lost, memory stays flat, and the server answers others meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import httpx
import psutil
import pytest
from engines import TinyEngine
from servers import LIMITS, running

STREAMS = 200


@pytest.mark.slow
def test_two_hundred_streams_of_which_half_leave(model_folder: Any) -> None:
    from dataclasses import replace

    limits = replace(LIMITS, rows=64, cache_rows=8, queue=STREAMS)
    with running({"tiny": TinyEngine(model_folder)}, batch=limits) as server:
        asyncio.run(crowd(server))  # the first one fills caches and allocators
        process = psutil.Process()
        before = process.memory_info().rss
        figures = [asyncio.run(crowd(server)) for _ in range(3)]
        grown = (process.memory_info().rss - before) / 2**20
        batcher = server.models["tiny"].batcher
        assert batcher.idle and len(batcher._free_rows) == limits.rows
    for finished, left, health, seconds in figures:
        assert finished == left == STREAMS // 2
        print(
            f"{seconds:.1f} s; /health: median {statistics.median(health):.1f} ms, "
            f"95 % {statistics.quantiles(health, n=20)[-1]:.1f} ms, worst {max(health):.1f} ms of {len(health)}"
        )
        assert statistics.quantiles(health, n=20)[-1] < 50
    print(f"memory grew by {grown:.1f} MiB over three crowds")
    assert grown < 16


async def crowd(server: Any) -> tuple[int, int, list[float], float]:
    """Finished streams, streams left early, milliseconds of each look at /health, and seconds in all."""
    start = time.monotonic()
    health: list[float] = []
    limits = httpx.Limits(max_connections=STREAMS + 8)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:

        async def watch() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=10) as own:
                while True:
                    asked = time.monotonic()
                    assert (await own.get("/health")).status_code == 200
                    health.append(1000 * (time.monotonic() - asked))
                    await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        ends = await asyncio.gather(*(stream(client, number) for number in range(STREAMS)))
        watching.cancel()
    deadline = time.monotonic() + 10
    while not server.models["tiny"].batcher.idle:
        assert time.monotonic() < deadline, "rows were not freed"
        await asyncio.sleep(0.01)
    return ends.count("finished"), ends.count("left"), health, time.monotonic() - start


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
