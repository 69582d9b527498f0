"""Requests that schemathesis makes up from the server's own description: no 5xx, and every answer as described."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import EchoEngine, TinyEngine
from servers import RunningServer, running

pytest.importorskip("schemathesis", reason="fuzzing needs schemathesis: install small-doge[dev]")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def fuzz(server: RunningServer, phases: str, examples: int, folder: Path) -> int:
    """Run schemathesis, and return how many requests the server counted."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", CHECKS]
    command += ["--phases", phases, "--max-examples", str(examples), "--seed", "1", "--no-color"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=3000)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    counts = re.findall(
        r'^small_doge_requests_total\{.*status="(\w+)"\} (\S+)', httpx.get(f"{server.url}/metrics").text, re.M
    )
    assert not [status for status, _ in counts if status.startswith("5")], counts
    return int(sum(float(count) for _, count in counts))


@pytest.fixture
def small_server(tokenizer: Any, model_folder: Path) -> Any:
    """Short completions, so that the time goes into the requests."""
    models = {"echo": EchoEngine(tokenizer), "org/tiny": TinyEngine(model_folder)}
    with running(models, max_completion_tokens=4, max_choices=4) as server:
        yield server


def test_a_few_requests_that_nobody_thought_of(small_server, tmp_path):
    assert fuzz(small_server, "fuzzing", 20, tmp_path) > 50


@pytest.mark.slow
def test_ten_thousand_requests_that_nobody_thought_of(small_server, tmp_path):
    count = fuzz(small_server, "examples,coverage,fuzzing", 3100, tmp_path)
    print(f"{count} requests")
    assert count >= 10_000
