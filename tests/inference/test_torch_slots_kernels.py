"""The Triton kernels of the token step against the plain step: in the interpreter, and as graphs on a GPU."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from ops.interpreted_process import interpreted, needs_triton

# kind of model, most lanes that the matrix-vector kernels serve
CASES = {
    "few lanes, by matrix-vector kernels": ("dense", 8),
    "many lanes, by matrix products": ("dense", 1),
    "many lanes, a score for each query head": ("scores_per_query_head", 1),
}
TESTS = Path(__file__).resolve().parents[1]

pytestmark = needs_triton


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    lines = interpreted("-m", "inference.slots_interpreted", json.dumps(list(CASES.values())), paths=(TESTS,))
    return dict(zip(CASES, lines, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_kernels_do_what_the_plain_step_does(case, found):
    assert not [name for name, difference in found[case].items() if not difference < 1e-4], found[case]


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True], ids=["one after another", "overlapped"])
@pytest.mark.parametrize("case", CASES)
def test_graphs_do_what_the_plain_step_does_on_a_gpu(case, overlap):
    from inference.slots_compare import differences

    from small_doge.inference.gpu_graphs import GraphedStep

    kind, matvec_lanes = CASES[case]
    found = differences(kind, partial(GraphedStep, matvec_lanes=matvec_lanes, overlap=overlap), "cuda")
    assert not [name for name, difference in found.items() if not difference < 1e-4], found
