"""Kernels in Triton's interpreter: in a process of their own, for it must be chosen before Triton is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: torch brings it on Linux"
)


def interpreted(*command: str | Path, paths: tuple[Path, ...] = ()) -> list[Any]:
    """What `python COMMAND` prints, a JSON value a line; it imports from this folder and from `paths`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1] / "src", HERE, *paths)))}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
