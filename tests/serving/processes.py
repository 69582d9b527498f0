"""Servers in processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def process(arguments: Sequence[str], port: int) -> Iterator[subprocess.Popen]:
    """`python ARGUMENTS`, once it answers on the port; killed in the end."""
    started = subprocess.Popen([sys.executable, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not is_well(port):
            assert started.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        yield started
    finally:
        started.kill()
        started.wait()


def is_well(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False
