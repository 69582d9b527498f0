"""The Triton kernels of the token step against the plain step: in the interpreter, and as graphs on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

# kind of model, most lanes that the matrix-vector kernels serve
CASES = {
    "few lanes, by matrix-vector kernels": ("dense", 8),
    "many lanes, by matrix products": ("dense", 1),
    "many lanes, a score for each query head": ("scores_per_query_head", 1),
}
TESTS = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), *sys.path])}
    command = [sys.executable, "-m", "inference.slots_interpreted", json.dumps(list(CASES.values()))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_kernels_do_what_the_plain_step_does(case, interpreted):
    assert not [name for name, difference in interpreted[case].items() if not difference < 1e-4], interpreted[case]


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True], ids=["one after another", "overlapped"])
@pytest.mark.parametrize("case", CASES)
def test_graphs_do_what_the_plain_step_does_on_a_gpu(case, overlap):
    from inference.slots_compare import differences

    from small_doge.inference.gpu_graphs import GraphedStep

    kind, matvec_lanes = CASES[case]
    found = differences(kind, partial(GraphedStep, matvec_lanes=matvec_lanes, overlap=overlap), "cuda")
    assert not [name for name, difference in found.items() if not difference < 1e-4], found
