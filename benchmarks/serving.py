"""Throughput of the server: streams at once, tokens/s of all together, time to the first token, and the pace of one.

    python benchmarks/serving.py MODEL [--dtypes int8 bf16] [--streams 1 4 16 64] [--tokens 128] [--rounds 3]

MODEL is a checkpoint folder with its tokenizer. `small-doge serve` runs in a process of its own, and one client opens
the streams on the same machine, so that its work is in the figures. Prompts differ, and a completion that ends early
counts as it is. Rows go to DIR/serving_DEVICE_DATE.json (DIR: $OUT, else benchmarks/results). The last line printed is
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rows import RESULTS, Table, save

from small_doge.utils.hardware import device_name

METRICS = ("tokens/s", "tokens/s of a stream", "ms to the first token, median", "ms to the first token, 95 %")


async def stream(client: httpx.AsyncClient, number: int, tokens: int) -> tuple[int, float, float]:
    """Tokens of one stream, seconds to its first piece and to its end."""
    body = {
        "model": "measured",
        "prompt": f"Story number {number}. Once upon a time there was a small dog, and one day it",
        "max_tokens": tokens,
        "temperature": 1.0,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - start
                usage = json.loads(line[6:]).get("usage")
                count = usage["completion_tokens"] if usage else count
    return count, first, time.perf_counter() - start


async def crowd(url: str, streams: int, tokens: int, turn: int) -> dict[str, float]:
    """The figures of one round of streams that begin together."""
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        start = time.perf_counter()
        found = await asyncio.gather(*(stream(client, 1000 * turn + i, tokens) for i in range(streams)))
        seconds = time.perf_counter() - start
    firsts = sorted(1000 * first for _, first, _ in found)
    values = (
        sum(count for count, _, _ in found) / seconds,
        statistics.median(count / whole for count, _, whole in found),
        statistics.median(firsts),
        firsts[round(0.95 * (len(firsts) - 1))],
    )
    return dict(zip(METRICS, values, strict=True))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the server did not start")
        time.sleep(0.1)


def measure(args: argparse.Namespace, dtype: str, table: Table) -> None:
    """Add the rows of one weight type."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["serve", f"measured={args.model}", "--device", args.device, "--dtype", dtype, "--port", str(port)]
    command += ["--rows", str(max(args.streams)), "--queue", str(max(args.streams))]
    server = subprocess.Popen([sys.executable, "-m", "small_doge.cli", *command], stderr=subprocess.DEVNULL)
    try:
        wait_for(url, server)
        asyncio.run(crowd(url, max(args.streams), args.tokens, 0))
        found: dict[tuple[int, str], list[float]] = {}
        for turn in range(1, args.rounds + 1):
            for streams in args.streams:
                for metric, value in asyncio.run(crowd(url, streams, args.tokens, turn)).items():
                    found.setdefault((streams, metric), []).append(value)
    finally:
        server.kill()
        server.wait()
    for (streams, metric), values in found.items():
        row = table.add(f"{dtype}, {streams} streams", Path(args.model).name, metric, values)
        spread = f"{row['value']:10,.5g}  [{row['min']:,.5g}, {row['max']:,.5g}]"
        print(f"{dtype} {streams:4} streams  {metric:32} {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder with its tokenizer")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["int8", "bf16"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of a completion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    table = Table("serving", device_name(args.device), digits=".5g")
    for dtype in args.dtypes:
        measure(args, dtype, table)
    path = save(table.rows, args.out, table.name, table.device)
    print(json.dumps({"rows": len(table.rows), "file": path.name}))


if __name__ == "__main__":
    main()
