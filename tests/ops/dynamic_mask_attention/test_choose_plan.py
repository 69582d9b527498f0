"""The rules that choose between the two forwards and between the two backwards."""

from __future__ import annotations

import pytest
import torch
from interpreted_process import needs_triton

pytestmark = needs_triton


@pytest.fixture
def attention():
    from small_doge.ops.dynamic_mask_attention import triton_attention

    return triton_attention


def choose(attention, queries=64, keys=64, head_size=128, dtype=torch.bfloat16, listed=False):
    query, key = torch.empty(2, 4, queries, head_size, dtype=dtype), torch.empty(2, 2, keys, head_size, dtype=dtype)
    return attention.choose_plan(query, key, listed=listed)


def test_half_precision_with_as_many_keys_as_queries_is_fused(attention):
    assert choose(attention) == attention.PLANS[128]
    assert choose(attention, head_size=48, dtype=torch.float16) == attention.PLANS[64]


@pytest.mark.parametrize(
    "case",
    [{"listed": True}, {"dtype": torch.float32}, {"queries": 63}, {"head_size": 256}, {"head_size": 12}],
    ids=["lists", "fp32", "a chunk after a cache", "heads of 256", "rows that the TMA cannot read"],
)
def test_two_kernels_serve_the_rest(attention, case):
    assert choose(attention, **case) is None


def test_two_kernels_serve_where_too_much_would_be_kept(attention, monkeypatch):
    monkeypatch.setattr(attention, "MOST_KEPT", 2 * 4 * 64 * 64 - 1)
    assert choose(attention) is None


def choose_tma(attention, queries=64, keys=64, head_size=128, dtype=torch.bfloat16, listed=False, masked=False):
    query, key = torch.empty(2, 4, queries, head_size, dtype=dtype), torch.empty(2, 2, keys, head_size, dtype=dtype)
    return attention.choose_tma_tiles(query, key, listed=listed, masked=masked)


def test_half_precision_with_as_many_keys_as_queries_goes_by_the_tma(attention):
    assert choose_tma(attention) == attention.TMA_TILES[128, False]
    assert choose_tma(attention, head_size=96, dtype=torch.float16, masked=True) == attention.TMA_TILES[128, True]


@pytest.mark.parametrize(
    "case",
    [{"listed": True}, {"dtype": torch.float32}, {"queries": 63}, {"head_size": 64}, {"head_size": 76}],
    ids=["lists", "fp32", "a chunk after a cache", "heads of 64", "rows that the TMA cannot read"],
)
def test_the_rest_goes_by_pointers(attention, case):
    assert choose_tma(attention, **case) is None
