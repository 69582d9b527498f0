"""Runs the Triton kernels in Triton's interpreter, on a CPU; prints one JSON line a case: its relative errors.

A process of its own (`test_triton.py` starts it), because the interpreter must be chosen before Triton is imported.
"""

from __future__ import annotations

import json
import sys

# isort: off
import triton_interpreter  # first: it chooses the interpreter
# isort: on

import torch

from small_doge.ops.dynamic_mask_attention import dynamic_mask_attention, triton_attention
from small_doge.ops.dynamic_mask_attention.retention import (
    rank_in_row,
    retention_horizon,
    running_threshold,
    sort_key,
)
from small_doge.ops.dynamic_mask_attention.triton_fused_backward import Plan
from small_doge.ops.dynamic_mask_attention.triton_retention import running_threshold_triton

from .attention_cases import draw_inputs, draw_limits, draw_scores, relative_errors, with_gradients


def attention(kernel, heads, groups, queries, keys, window, limits, head_size, dtype, scores) -> dict[str, float]:
    inputs = draw_inputs(heads, groups, queries, keys, head_size, getattr(torch, dtype), scores, batch=1)
    limit = draw_limits(limits, 1, keys)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = with_gradients(
        lambda *x: dynamic_mask_attention(*x, keep_window=window, limit_BS=limit, backend="naive"), exact
    )

    small = Plan(rows=16, keys=32, warps=4, stages=1, query_rows=64, query_warps=4, query_stages=1)
    triton_attention.choose_plan = lambda *_, **__: small if kernel == "fused" else None
    tma_tiles = triton_attention.Tiles(rows=32, keys=16, warps=4, stages=1)
    triton_attention.choose_tma_tiles = lambda *_, **__: tma_tiles if kernel == "tma" else None

    def call(query, key, value, score):
        scale = head_size**-0.5
        horizon = retention_horizon(score, window, limit)
        if kernel == "sparse":
            return triton_attention.triton_sparse_attention(
                query, key, value, score, horizon, keep_window=window, scale=scale, span=24
            )
        masked = keys > window or limit is not None
        return triton_attention.triton_causal_attention(
            query, key, value, score, horizon if masked else None, scale=scale
        )

    return relative_errors(with_gradients(call, inputs), expected)


def threshold(keys, window, scores) -> dict[str, float]:
    rank, position = rank_in_row(sort_key(draw_scores(scores, 1, 2, keys), torch.full((1, keys), keys)))
    found = running_threshold_triton(rank.int(), position.int(), window)
    return {"wrong": float((found != running_threshold(rank, window)).sum())}


def main() -> None:
    triton_interpreter.prepare()
    for name in triton_attention.TILES:
        triton_attention.TILES[name] = triton_attention.Tiles(rows=32, keys=32, warps=4, stages=1)
    triton_attention.TOGETHER = 2
    for case in json.loads(sys.argv[1]):
        torch.manual_seed(0)
        errors = threshold(*case[1:]) if case[0] == "threshold" else attention(*case)
        print(json.dumps(errors), flush=True)


if __name__ == "__main__":
    main()
