"""The Triton kernels, in the interpreter: outputs and every gradient against the definition."""

from __future__ import annotations

import json

import pytest
from ops.interpreted_process import interpreted, needs_triton

# kernel, query heads, key heads, queries, keys, window, limits, head size, dtype, scores
FAST = {
    "causal with a score": ("causal", 2, 1, 70, 70, 70, "whole", 16, "float32", "random"),
    "causal with horizons, packed and padded, three heads a key head": (
        *("causal", 3, 1, 45, 45, 9, "packed and padded", 24, "float32", "of four values"),
    ),
    "causal, a chunk after a cache, fp16": ("causal", 2, 1, 20, 75, 75, "whole", 16, "float16", "random"),
    "sparse": ("sparse", 2, 1, 70, 70, 9, "whole", 16, "float32", "random"),
    "sparse, packed and padded, three heads a key head": (
        *("sparse", 3, 1, 45, 45, 9, "packed and padded", 24, "float32", "of four values"),
    ),
    "sparse, a chunk after a cache, fp16": ("sparse", 2, 1, 20, 75, 12, "whole", 16, "float16", "rising"),
    "fused, an odd length": ("fused", 2, 1, 70, 70, 70, "whole", 16, "float16", "random"),
    "fused, packed and padded, three heads a key head": (
        *("fused", 3, 1, 110, 110, 9, "packed and padded", 24, "float16", "of four values"),
    ),
    "by the TMA, an odd length": ("tma", 2, 1, 70, 70, 70, "whole", 16, "float16", "random"),
    "by the TMA, packed and padded, three heads a key head": (
        *("tma", 3, 1, 45, 45, 9, "packed and padded", 24, "float16", "of four values"),
    ),
    "the running threshold": ("threshold", 600, 50, "random"),
}
SLOW = {
    "causal with horizons, falling scores": ("causal", 4, 2, 97, 97, 40, "whole", 16, "float32", "falling"),
    "causal, packed, nothing beaten out": ("causal", 4, 2, 97, 97, 97, "packed", 16, "float32", "random"),
    "causal, one query after a cache": ("causal", 4, 2, 1, 97, 30, "padded", 32, "float32", "random"),
    "sparse, constant scores": ("sparse", 4, 2, 97, 97, 20, "whole", 16, "float32", "constant"),
    "sparse, one query after a cache": ("sparse", 4, 2, 1, 97, 30, "padded", 32, "float32", "random"),
    "sparse, two key heads, packed": ("sparse", 4, 2, 130, 130, 33, "packed", 16, "float32", "of both signs"),
    "fused, three key heads, packed": ("fused", 6, 3, 130, 130, 33, "packed", 16, "float16", "of both signs"),
    "fused, falling scores": ("fused", 4, 2, 97, 97, 40, "whole", 16, "float16", "falling"),
    "fused, one head of all": ("fused", 1, 1, 64, 64, 64, "whole", 32, "float16", "constant"),
    "by the TMA, two key heads, packed": ("tma", 4, 2, 97, 97, 97, "packed", 16, "float16", "of both signs"),
    "by the TMA, falling scores": ("tma", 4, 2, 130, 130, 40, "whole", 16, "float16", "falling"),
    "by the TMA, one head of all": ("tma", 1, 1, 64, 64, 64, "whole", 32, "float16", "constant"),
    "the running threshold over many chunks, ties": ("threshold", 1500, 300, "of four values"),
    "the running threshold with a window of one": ("threshold", 300, 1, "rising"),
}


def run_interpreted(cases: dict[str, tuple]) -> dict[str, dict[str, float]]:
    found = interpreted("-m", "dynamic_mask_attention.interpreted", json.dumps(list(cases.values())))
    return dict(zip(cases, found, strict=True))


@pytest.fixture(scope="module")
def fast_errors():
    return run_interpreted(FAST)


@pytest.fixture(scope="module")
def slow_errors():
    return run_interpreted(SLOW)


def assert_small(errors: dict[str, float], half: bool) -> None:
    # Not (x < y): NaN must fail.
    assert not [name for name, error in errors.items() if not error < (4e-3 if half else 2e-6)], errors


pytestmark = needs_triton


@pytest.mark.parametrize("name", FAST)
def test_kernel_equals_the_definition(name, fast_errors):
    assert_small(fast_errors[name], "float16" in FAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_kernel_equals_the_definition_in_more_cases(name, slow_errors):
    assert_small(slow_errors[name], "float16" in SLOW[name])
