"""Whole models through the Triton kernels equal the definition: in Triton's interpreter, and on a GPU.

On a GPU: `pytest tests/models/doge/test_kernels_in_the_model.py -m gpu -v`.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from kernels_compare import differences, too_large
from ops.interpreted_process import interpreted, needs_triton

FOLDER = Path(__file__).resolve().parent
KINDS = ("dense", "mixture", "scores_per_query_head")
KERNELS = ("doge_triton_causal", "doge_triton_sparse")
# Decoding takes the plain step, one query that sees every slot, unless a kernel is named.
WAYS = ("trained", "prefilled_in_chunks", "packed", "padded_on_the_left")
FAST = {
    "dense, trained": ("dense", KERNELS[0], "trained"),
    "mixture, trained": ("mixture", KERNELS[0], "trained"),
    "mixture, packed": ("mixture", KERNELS[1], "packed"),
}
SLOW = {", ".join(case): case for case in product(KINDS, KERNELS, WAYS)}

pytestmark = needs_triton


def run_interpreted(cases: dict[str, tuple]) -> dict[str, dict[str, float]]:
    found = interpreted(
        FOLDER / "kernels_interpreted.py", json.dumps(list(cases.values())), paths=(FOLDER.parent, FOLDER)
    )
    return dict(zip(cases, found, strict=True))


@pytest.fixture(scope="module")
def fast() -> dict[str, dict[str, float]]:
    return run_interpreted(FAST)


@pytest.fixture(scope="module")
def slow() -> dict[str, dict[str, float]]:
    return run_interpreted(SLOW)


@pytest.mark.parametrize("case", FAST)
def test_a_model_is_that_of_the_definition(case, fast):
    assert not too_large(fast[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_a_model_is_that_of_the_definition_in_more_cases(case, slow):
    assert not too_large(slow[case])


@pytest.mark.gpu
@pytest.mark.parametrize("way", [*WAYS, "decoded", "prefilled_then_decoded", "padded_on_the_left_then_decoded"])
# "sdpa": the rule chooses.
@pytest.mark.parametrize("backend", ["sdpa", "doge_blocked", *KERNELS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_a_gpu_is_that_of_the_definition(kind, backend, way):
    assert not too_large(differences(kind, backend, way, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("way", [*WAYS, "decoded"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_a_gpu_is_near_it_in_half_precision(kind, dtype, way):
    assert not too_large(differences(kind, "sdpa", way, dtype, "cuda"), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", *KERNELS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_model_on_a_gpu_trains_as_the_definition(kind, backend):
    assert not too_large(differences(kind, backend, "trained", device="cuda", compiled=True))
