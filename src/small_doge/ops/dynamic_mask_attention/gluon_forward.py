"""The forward for every key up to the query, heads of 128 and half precision, written for Hopper in Gluon.

Gluon is Triton's lower level: layouts, barriers and asynchronous instructions are named here. A program is three groups
of warps. One warp asks for tiles by the TMA, as far ahead as there is room. Two groups of four warps hold 64 of the 128
queries each; both products are asynchronous, and the one with the values runs under the next block's softmax. As the
groups drift apart, one multiplies while the other takes exponentials. Programs are persistent (`gluon_queue`).

On an H100 (2026-11-26, medians of 7 rounds of calls in a row, bf16, T = 2048): 0.434 ms at the 160M's shape with 32
rows, where `tma_forward` takes 0.563; 0.321 and 0.406 at the 60M's with 32, 0.312 and 0.398 at the 320M's with 16. On
an H200 0.446, 0.290 and 0.300, where cuDNN, which has no scores, takes 0.419, 0.277 and 0.275. The floor, both
products at 989 TFLOP/s, is 0.208 ms at the 160M's.

Words as in `triton_forward`.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from small_doge.ops.dynamic_mask_attention.gluon_queue import described, queue, take
from small_doge.ops.dynamic_mask_attention.triton_forward import LOG2E
from small_doge.ops.dynamic_mask_attention.triton_tma_forward import padded_scores

HEAD = gl.constexpr(128)
ROWS = gl.constexpr(64)
"""Queries of a group of warps; a tile is two of them."""
KEYS = gl.constexpr(128)
"""Of a block: as many as a tile has queries, so that a tile's last block alone has keys later than a query."""
STAGES = gl.constexpr(2)
"""Blocks of keys, of values, and tiles of queries that there is room for."""


@gluon.jit
def load_tiles(descriptors, queue_ptr, rings, barriers, heads, groups, tiles, room):
    """The loading warp's part: of each tile the queries, and from the diagonal down keys one block ahead of values."""
    q_desc, k_desc, v_desc, score_desc = descriptors
    q, k, v, score = rings
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    key_turn = 0
    value_turn = 0
    turn = 0
    piece = take(queue_ptr, turn)
    while piece >= 0:
        tile = piece % tiles
        row = piece // tiles
        b = row // heads
        head = row % heads
        g = head // (heads // groups)
        stage = turn % STAGES
        mbarrier.wait(q_empty.index(stage), turn // STAGES % 2 ^ 1)
        mbarrier.expect(q_full.index(stage), 2 * ROWS * HEAD * q.dtype.primitive_bitwidth // 8)
        for half in gl.static_range(2):
            at = tile * KEYS + half * ROWS
            tma.async_copy_global_to_shared(q_desc, [b, head, at, 0], q_full.index(stage), q.index(2 * stage + half))
        for block in range(tile, -2, -1):
            if block >= 0:
                stage = key_turn % STAGES
                mbarrier.wait(k_empty.index(stage), key_turn // STAGES % 2 ^ 1)
                mbarrier.expect(k_full.index(stage), KEYS * HEAD * k.dtype.primitive_bitwidth // 8 + KEYS * 4)
                at = block * KEYS
                tma.async_copy_global_to_shared(k_desc, [b, g, at, 0], k_full.index(stage), k.index(stage))
                at += (b * groups + g) * room
                tma.async_copy_global_to_shared(score_desc, [at], k_full.index(stage), score.index(stage))
                key_turn += 1
            if block < tile:
                stage = value_turn % STAGES
                mbarrier.wait(v_empty.index(stage), value_turn // STAGES % 2 ^ 1)
                mbarrier.expect(v_full.index(stage), KEYS * HEAD * v.dtype.primitive_bitwidth // 8)
                at = (block + 1) * KEYS
                tma.async_copy_global_to_shared(v_desc, [b, g, at, 0], v_full.index(stage), v.index(stage))
                value_turn += 1
        turn += 1
        piece = take(queue_ptr, turn)


@gluon.jit
def attend(out_desc, lse_ptr, out, queue_ptr, rings, barriers, heads, tiles, queries, scale, HALF: gl.constexpr):
    """One group's part: outputs and log-sum-exps of half a tile's queries."""
    q, k, v, score = rings
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    key_turn = 0
    value_turn = 0
    turn = 0
    piece = take(queue_ptr, turn)
    while piece >= 0:
        tile = piece % tiles
        row = piece // tiles
        first = tile * KEYS + HALF * ROWS
        position = first + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
        zeros = gl.zeros([ROWS, KEYS], gl.float32, layout)
        weighted = gl.zeros([ROWS, HEAD], gl.float32, layout)

        stage = turn % STAGES
        query = q.index(2 * stage + HALF).reshape([ROWS, HEAD])
        mbarrier.wait(q_full.index(stage), turn // STAGES % 2)
        stage = key_turn % STAGES
        mbarrier.wait(k_full.index(stage), key_turn // STAGES % 2)
        key = k.index(stage).reshape([KEYS, HEAD])
        logits = warpgroup_mma(query, key.permute((1, 0)), zeros, use_acc=False, is_async=True)
        bias = gl.expand_dims(score.index(stage).load(gl.SliceLayout(0, layout)), 0)
        logits = warpgroup_mma_wait(0, [logits])
        mbarrier.arrive(k_empty.index(stage), count=1)
        key_turn += 1
        key_at = tile * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, layout))
        later = gl.expand_dims(position, 1) < gl.expand_dims(key_at, 0)
        logits = gl.where(later, float("-inf"), logits * scale + bias)
        # Finite, so that a row which has seen nothing yet never computes inf - inf.
        top = gl.maximum(gl.max(logits, 1), -1.0e30)
        weights = gl.exp2(logits - gl.expand_dims(top, 1))
        total = gl.sum(weights, 1)
        rounded = gl.convert_layout(weights.to(v.dtype), operand)

        for _ in range(tile):
            stage = key_turn % STAGES
            mbarrier.wait(k_full.index(stage), key_turn // STAGES % 2)
            key = k.index(stage).reshape([KEYS, HEAD])
            logits = warpgroup_mma(query, key.permute((1, 0)), zeros, use_acc=False, is_async=True)
            before = value_turn % STAGES
            mbarrier.wait(v_full.index(before), value_turn // STAGES % 2)
            weighted = warpgroup_mma(rounded, v.index(before).reshape([KEYS, HEAD]), weighted, is_async=True)
            bias = gl.expand_dims(score.index(stage).load(gl.SliceLayout(0, layout)), 0)
            logits = warpgroup_mma_wait(1, [logits])
            mbarrier.arrive(k_empty.index(stage), count=1)
            key_turn += 1
            logits = logits * scale + bias
            new_top = gl.maximum(top, gl.max(logits, 1))
            weights = gl.exp2(logits - gl.expand_dims(new_top, 1))
            fade = gl.exp2(top - new_top)
            total = total * fade + gl.sum(weights, 1)
            top = new_top
            weighted, rounded = warpgroup_mma_wait(0, [weighted, rounded])
            mbarrier.arrive(v_empty.index(before), count=1)
            value_turn += 1
            weighted = weighted * gl.expand_dims(fade, 1)
            rounded = gl.convert_layout(weights.to(v.dtype), operand)
        mbarrier.arrive(q_empty.index(turn % STAGES), count=1)

        before = value_turn % STAGES
        mbarrier.wait(v_full.index(before), value_turn // STAGES % 2)
        weighted = warpgroup_mma(rounded, v.index(before).reshape([KEYS, HEAD]), weighted, is_async=True)
        weighted = warpgroup_mma_wait(0, [weighted])
        mbarrier.arrive(v_empty.index(before), count=1)
        value_turn += 1
        seen = total > 0.0
        weighted = weighted * gl.expand_dims(1.0 / gl.where(seen, total, 1.0), 1)
        # +inf where nothing was seen: the backward weights exp2(logit - inf) are then 0.
        lse = gl.where(seen, top + gl.log2(total), float("inf"))
        gl.store(lse_ptr + row * queries + position, lse, mask=position < queries)
        # What the tile before left there has been read by then.
        tma.store_wait(0)
        out.reshape([ROWS, HEAD]).store(weighted.to(out.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [row // heads, row % heads, first, 0], out)
        turn += 1
        piece = take(queue_ptr, turn)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=("tiles", "queries", "room"))
def gluon_forward_kernel(
    q_desc, k_desc, v_desc, score_desc, out_desc, lse_ptr, queue_ptr, heads, groups, tiles, queries, room, scale
):
    """`scale` and scores are in base 2; so is the log-sum-exp it writes."""
    q = gl.allocate_shared_memory(q_desc.dtype, [2 * STAGES, 1, 1, ROWS, HEAD], q_desc.layout)
    k = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, 1, KEYS, HEAD], k_desc.layout)
    v = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, 1, KEYS, HEAD], v_desc.layout)
    score = gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], score_desc.layout)
    out = gl.allocate_shared_memory(out_desc.dtype, [2, 1, 1, ROWS, HEAD], out_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        # Full once its bytes have come; empty once both groups have read it.
        mbarrier.init(q_full.index(stage), count=1)
        mbarrier.init(q_empty.index(stage), count=2)
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(v_empty.index(stage), count=2)
    descriptors = (q_desc, k_desc, v_desc, score_desc)
    rings = (q, k, v, score)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    gl.warp_specialize(
        [
            (attend, (out_desc, lse_ptr, out.index(0), queue_ptr, rings, barriers, heads, tiles, queries, scale, 0)),
            (attend, (out_desc, lse_ptr, out.index(1), queue_ptr, rings, barriers, heads, tiles, queries, scale, 1)),
            (load_tiles, (descriptors, queue_ptr, rings, barriers, heads, groups, tiles, room)),
        ],
        [4, 1],
        [240, 24],
    )


def gluon_forward(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor, *, scale: float, together: int
) -> tuple[Tensor, Tensor]:
    """The outputs, as the queries lie in memory, and their log-sum-exp in base 2, [B, H, T].

    ``together`` key/value heads have their tiles side by side.
    """
    batch, heads, queries, _ = query.shape
    groups = key.shape[1]
    tiles = triton.cdiv(queries, KEYS.value)
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    scores = padded_scores(score, KEYS.value)
    line = queue(batch * heads, tiles, together * heads // groups, query.device, last_heaviest=True)
    gluon_forward_kernel[(line.shape[1],)](
        described(query, ROWS.value),
        described(key, KEYS.value),
        described(value, KEYS.value),
        described(scores.view(-1), KEYS.value),
        described(out, ROWS.value),
        *(lse, line, heads, groups, tiles, queries, scores.shape[-1], scale * LOG2E.value),
        num_warps=4,
    )
    return out, lse
