"""Dynamic mask attention by Triton kernels, with gradients: the two ways to launch them, and their tile sizes.

`causal`: every key up to the query is looked at, with or without horizons: O(T * S) work; for S up to about 2w.
`sparse`: each span of queries looks at its list of at most w + C keys: O(T * w) work and O(T) memory.
Forward takes one of three kernels (`choose_gluon`, `choose_tma_tiles`) and backward one of two ways (`choose_plan`),
all without atomics: outputs and gradients are the same bits every time.
"""

import logging
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from small_doge.ops.dynamic_mask_attention.triton_backward import gather_kernel, key_kernel, query_kernel
from small_doge.ops.dynamic_mask_attention.triton_forward import LOG2E, Tiles, forward_kernel, granules, strides
from small_doge.ops.dynamic_mask_attention.triton_fused_backward import Plan, fused_backward
from small_doge.ops.dynamic_mask_attention.triton_lists import index_lists, reach_of
from small_doge.ops.dynamic_mask_attention.triton_tma_forward import tma_forward
from small_doge.ops.support import shared_memory

logger = logging.getLogger(__name__)

GLUON_TRITON = "3.6"
"""The version of Triton that the kernels in Gluon were tried with."""
TILES: dict[tuple[str, int, int], Tiles] = {
    # (kernel, head size rounded up to a power of two, bytes of an element)
    ("forward", 64, 2): Tiles(128, 64, 4, 3),
    ("forward", 128, 2): Tiles(128, 64, 8, 3),
    ("forward", 256, 2): Tiles(128, 64, 8, 2),
    ("query", 64, 2): Tiles(64, 64, 4, 3),
    ("query", 128, 2): Tiles(128, 128, 8, 2),
    ("query", 256, 2): Tiles(64, 64, 8, 1),
    ("key", 64, 2): Tiles(64, 64, 4, 3),
    ("key", 128, 2): Tiles(64, 64, 4, 2),
    ("key", 256, 2): Tiles(64, 64, 8, 1),
    ("forward", 64, 4): Tiles(64, 32, 4, 2),
    ("forward", 128, 4): Tiles(64, 32, 4, 2),
    ("forward", 256, 4): Tiles(32, 32, 4, 1),
    ("query", 64, 4): Tiles(64, 32, 4, 2),
    ("query", 128, 4): Tiles(64, 32, 8, 1),
    ("query", 256, 4): Tiles(32, 32, 8, 1),
    ("key", 64, 4): Tiles(32, 64, 4, 2),
    ("key", 128, 4): Tiles(32, 64, 8, 1),
    ("key", 256, 4): Tiles(32, 32, 8, 1),
}
"""Fixed and not tuned while running, so that a resumed run adds in the same order as the first."""

SMALL_TILES = TILES | {
    ("forward", 256, 2): Tiles(64, 32, 4, 2),
    ("query", 128, 2): Tiles(64, 64, 4, 2),
    ("query", 256, 2): Tiles(64, 32, 4, 1),
    ("key", 256, 2): Tiles(32, 32, 4, 1),
    ("forward", 128, 4): Tiles(32, 32, 4, 1),
    ("forward", 256, 4): Tiles(16, 32, 4, 1),
    ("query", 128, 4): Tiles(32, 32, 4, 1),
    ("query", 256, 4): Tiles(16, 16, 4, 1),
    ("key", 128, 4): Tiles(32, 32, 4, 1),
    ("key", 256, 4): Tiles(16, 16, 4, 1),
}
"""For GPUs that give a program less than 200 KiB of shared memory (an RTX 4090: 99): compiled for them, not timed."""
PLANS = {
    64: Plan(rows=64, keys=64, warps=4, stages=2, query_rows=128, query_warps=8, query_stages=3),
    128: Plan(rows=64, keys=64, warps=4, stages=2, query_rows=128, query_warps=8, query_stages=3),
}
"""The fused backward's, by head size rounded up to a power of two; 64 is checked on an H100, not timed."""
MOST_KEPT = 2 << 30
"""Bytes that the fused backward may keep for a layer, about B * H * T * T; beyond, the two kernels serve, with O(T). A
micro-batch chosen by `small_doge.trainer.footprint` leaves room for as much."""
TMA_TILES = {(128, False): Tiles(128, 64, 4, 2), (128, True): Tiles(64, 64, 4, 2)}
"""The forward's by the TMA, by head size rounded up to a power of two, and whether there are horizons. On an H200
(2026-11-26, medians of 3 rounds, bf16, T = 2048) it took 0.337 ms, and `forward_kernel` 0.444, at Doge-20M's shape with
B = 64; 0.348 and 0.453 at the 60M's with 32, 0.510 and 0.656 at the 160M's with 32, 0.344 and 0.446 at the 320M's with
16; cuDNN's, which has no scores, 0.269, 0.267, 0.389 and 0.267. Five documents a row at the 60M's: 0.222 with the
larger tiles, 0.185 with the smaller, `forward_kernel` 0.244."""
TOGETHER = 8
"""Key/value heads whose programs run side by side, the longest first (`heaviest_first`); no bits depend on it. At
B = 32, H = 4, T = 2048, D = 128 on an H100 (2026-11-26, n = 3 rounds) 8 instead of 1 took forward from 0.455 to 0.436
ms, the two kernels from 1.259 to 1.175 and the fused backward from 0.971 to 0.914; with 16 the last two were slower
than with 8. Lists have not been timed."""


def triton_causal_attention(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    score_BGS: Tensor,
    horizon_BGS: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """softmax(scale * q.k + score) v over the keys j <= i, and i < horizon_j if there are horizons: [B, H, T, D]."""
    if horizon_BGS is None:
        end = reach = None
    else:
        end, reach = horizon_BGS.contiguous(), reach_of(horizon_BGS)
    lists = (end, reach, None, None, None, None, None)
    return _forward(*_last_contiguous(query_BHTD, key_BGSD, value_BGSD), score_BGS, *lists, scale, 0)[0]


def triton_sparse_attention(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    score_BGS: Tensor,
    horizon_BGS: Tensor,
    *,
    keep_window: int,
    scale: float,
    span: int | None = None,
) -> Tensor:
    """The same with O(T * w) work, by lists of the keys that each span of queries can see: [B, H, T, D].

    ``span`` trades the keys of a list that some of its queries cannot see (at most w + span / 2 are looked at) against
    the number of lists.
    """
    span = choose_span(keep_window) if span is None else span
    horizon_BGS = horizon_BGS.expand(score_BGS.shape)
    lists = index_lists(horizon_BGS, query_BHTD.shape[2], keep_window, span)
    return _forward(*_last_contiguous(query_BHTD, key_BGSD, value_BGSD), score_BGS, *lists, scale, span)[0]


def choose_span(keep_window: int) -> int:
    """Queries that share one list: a quarter of w, from 64 to 512."""
    return max(64, min(512, triton.next_power_of_2(keep_window) // 4))


def _last_contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _layout(
    query: Tensor, key: Tensor, end: Tensor | None, reach: Tensor | None, index: Tensor | None, span: int
) -> dict[str, Any]:
    """What all three kernels are told about shapes."""
    _, heads, queries, head_size = query.shape
    groups, keys = key.shape[1:3]
    exact = query.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
    return {
        "groups": groups,
        "end_groups": 1 if end is None or index is not None else end.shape[1],
        "queries": queries,
        "keys": keys,
        "span": queries if index is None else span,
        "spans": 1 if index is None else index.shape[1],
        "length": keys if index is None else index.shape[2],
        "R": heads // groups,
        "D": head_size,
        "DP": max(16, triton.next_power_of_2(head_size)),
        "MASKED": end is not None,
        "LISTED": index is not None,
        "TOGETHER": TOGETHER,
        "PRECISION": "tf32x3" if exact else "tf32",
    }


def _tiles(kernel: str, query: Tensor) -> Tiles:
    table = SMALL_TILES if query.is_cuda and shared_memory(query.device) < 200 << 10 else TILES
    return table[kernel, max(64, triton.next_power_of_2(query.shape[-1])), query.element_size()]


def _row_tiles(layout: dict[str, Any], rows: int) -> int:
    return layout["spans"] * triton.cdiv(layout["span"] * layout["R"], rows)


@torch.library.custom_op("small_doge::triton_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    end: Tensor | None,
    reach: Tensor | None,
    index: Tensor | None,
    seen: Tensor | None,
    slot: Tensor | None,
    slot0: Tensor | None,
    count: Tensor | None,
    scale: float,
    span: int,
) -> tuple[Tensor, Tensor]:
    if choose_gluon(query, key, listed=index is not None, masked=end is not None):
        from small_doge.ops.dynamic_mask_attention.gluon_forward import gluon_forward

        with torch.cuda.device_of(query):
            return gluon_forward(query, key, value, score, scale=scale, together=TOGETHER)
    tma_tiles = choose_tma_tiles(query, key, listed=index is not None, masked=end is not None)
    if tma_tiles is not None:
        with torch.cuda.device_of(query):
            return tma_forward(query, key, value, score, end, reach, scale=scale, tiles=tma_tiles, together=TOGETHER)
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    layout = _layout(query, key, end, reach, index, span)
    tiles = _tiles("forward", query)
    with torch.cuda.device_of(query):
        forward_kernel[(_row_tiles(layout, tiles.rows) * key.shape[0] * key.shape[1],)](
            *(query, key, value, score, end, reach, index, seen, out, lse),
            *strides(query, key, value, score, out),
            **layout,
            **granules(reach),
            scale=scale * LOG2E.value,
            **_meta(tiles),
        )
    return out, lse


@torch.library.custom_op("small_doge::triton_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    end: Tensor | None,
    reach: Tensor | None,
    index: Tensor | None,
    seen: Tensor | None,
    slot: Tensor | None,
    slot0: Tensor | None,
    count: Tensor | None,
    scale: float,
    span: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (grad,) = _last_contiguous(grad)
    plan = choose_plan(query, key, listed=index is not None)
    if plan is not None:
        specialized = choose_gluon(query, key, listed=index is not None, masked=end is not None)
        with torch.cuda.device_of(query):
            return fused_backward(
                *(grad, out, lse, query, key, value, score, end, reach),
                scale=scale,
                plan=plan,
                together=TOGETHER,
                specialized=specialized,
            )
    layout = _layout(query, key, end, reach, index, span)
    delta = torch.empty_like(lse)
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    grad_score = torch.empty_like(score)
    wholes = (grad_key, grad_value, grad_score)
    parts = wholes if index is None else _slots(key, layout["spans"] * layout["length"])
    with torch.cuda.device_of(query):
        query_pass(layout, query, key, value, score, end, reach, index, seen, out, grad, lse, delta, grad_query, scale)
        key_pass(layout, query, key, value, score, end, index, seen, slot, grad, lse, delta, parts, scale)
        if slot0 is not None and count is not None:
            for part, whole in zip(parts, wholes, strict=True):
                gather_pass(part, slot0, count, whole)
    return grad_query, grad_key, grad_value, grad_score


def choose_gluon(query: Tensor, key: Tensor, *, listed: bool, masked: bool) -> bool:
    """The rule for the kernels in Gluon: half precision, heads of 128, as many keys as queries, no lists and no
    horizons, on a Hopper GPU and with the Triton that they were tried with, for Gluon still changes."""
    queries, head_size = query.shape[2:]
    if listed or masked or query.element_size() != 2 or head_size != 128 or queries != key.shape[2]:
        return False
    return query.is_cuda and torch.cuda.get_device_capability(query.device)[0] == 9 and gluon_known()


@cache
def gluon_known() -> bool:
    """Whether Triton is the one whose Gluon was tried; says so, once, where it is another."""
    if triton.__version__.split(".")[:2] == GLUON_TRITON.split("."):
        return True
    logger.warning(
        "Attention's fastest kernels want Triton %s; with %s others serve.", GLUON_TRITON, triton.__version__
    )
    return False


def choose_tma_tiles(query: Tensor, key: Tensor, *, listed: bool, masked: bool) -> Tiles | None:
    """The rule for the forward: by the TMA with these tiles, or, where it is None, by `forward_kernel`.

    By the TMA where the fused backward's kernels could run too: half precision, heads of 72 to 128 in eights, as many
    keys as queries and no lists, on GPUs that give a program 200 KiB of shared memory (Hopper).
    """
    head_size = query.shape[-1]
    tiles = TMA_TILES.get((triton.next_power_of_2(head_size), masked))
    if tiles is None or listed or query.element_size() != 2 or head_size % 8 or query.shape[2] != key.shape[2]:
        return None
    return None if query.is_cuda and shared_memory(query.device) < 200 << 10 else tiles


def choose_plan(query: Tensor, key: Tensor, *, listed: bool) -> Plan | None:
    """The rule for the backward: fused by this plan, or, where it is None, by two kernels that multiply more.

    Fused for half precision, heads of up to 128 in eights, as many keys as queries and no lists, on GPUs that give a
    program 200 KiB of shared memory (Hopper, which also has the TMA), while what it keeps is within `MOST_KEPT`.
    There it was faster at every shape that was timed (H100, 2026-11-26, bf16, D = 128, T = 2048, medians of 3 rounds):

    | B, H      | two kernels | fused    | cuDNN, no scores |
    |-----------|-------------|----------|------------------|
    | 64, 2     | 1.113 ms    | 0.917 ms | 0.967 ms         |
    | 32, 4     | 1.175       | 0.914    | 0.951            |
    | 16, 6     | 0.886       | 0.693    | 0.743            |
    | 16, 8     | 1.168       | 0.916    | 0.974            |
    """
    batch, heads, queries, head_size = query.shape
    plan = PLANS.get(max(64, triton.next_power_of_2(head_size)))
    if plan is None or listed or query.element_size() != 2 or head_size % 8 or queries != key.shape[2]:
        return None
    if query.is_cuda and shared_memory(query.device) < 200 << 10:
        return None
    return plan if batch * heads * queries * queries <= MOST_KEPT else None


def query_pass(layout, query, key, value, score, end, reach, index, seen, out, grad, lse, delta, grad_query, scale):
    """The gradient of the queries, and delta."""
    tiles = _tiles("query", query)
    rows = key.shape[0] * key.shape[1]
    query_kernel[(_row_tiles(layout, tiles.rows) * rows,)](
        *(query, key, value, score, end, reach, index, seen, out, grad, lse, delta, grad_query),
        *strides(query, key, value, score, out, grad, grad_query),
        **layout,
        **granules(reach),
        scale=scale,
        **_meta(tiles),
    )


def key_pass(layout, query, key, value, score, end, index, seen, slot, grad, lse, delta, parts, scale):
    """The gradients of keys, values and scores, in place or to their slots."""
    tiles = _tiles("key", query)
    rows = key.shape[0] * key.shape[1]
    whole_tiles = layout["queries"] % layout["span"] == 0 and layout["span"] * layout["R"] % tiles.rows == 0
    key_kernel[(layout["spans"] * triton.cdiv(layout["length"], tiles.keys) * rows,)](
        *(query, key, value, score, end, index, seen, slot, grad, lse, delta, *parts),
        *strides(query, key, value, score, grad, *parts),
        **layout,
        scale=scale,
        EVEN=whole_tiles,
        **_meta(tiles),
    )


def gather_pass(part: Tensor, slot0: Tensor, count: Tensor, whole: Tensor) -> None:
    """Each key's slots, [B, G, slots, D] or [B, G, slots], summed into [B, G, S, D] or [B, G, S]."""
    width, block = (part.shape[3], 32) if part.dim() == 4 else (1, 256)
    batch, groups, keys = whole.shape[:3]
    gather_kernel[(triton.cdiv(keys, block), batch * groups)](
        *(part, slot0, count, whole, part.stride(1), *whole.stride()[:3], groups, keys),
        D=width,
        DP=triton.next_power_of_2(width),
        BN=block,
    )


def _slots(key: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, groups, _, head_size = key.shape
    part = torch.empty(2, batch, groups, slots, head_size, dtype=torch.float32, device=key.device)
    return part[0], part[1], torch.empty(batch, groups, slots, dtype=torch.float32, device=key.device)


def _meta(tiles: Tiles) -> dict[str, int]:
    return {"BM": tiles.rows, "BN": tiles.keys, "num_warps": tiles.warps, "num_stages": tiles.stages}


@_forward.register_fake
def _(query, key, value, score, end, reach, index, seen, slot, slot0, count, scale, span):
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@_backward.register_fake
def _(grad, out, lse, query, key, value, score, end, reach, index, seen, slot, slot0, count, scale, span):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), torch.empty_like(score)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale, ctx.span = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _):
    *tensors, out, lse = ctx.saved_tensors
    return *_backward(grad, out, lse, *tensors, ctx.scale, ctx.span), *(None,) * 9


torch.library.register_autograd(_forward, _differentiate, setup_context=_save)
