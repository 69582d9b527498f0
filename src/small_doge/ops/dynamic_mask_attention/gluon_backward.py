"""The key pass of the fused backward for heads of 128 and half precision, written for Hopper in Gluon.

It is `fused_kernel` of `triton_fused_backward` without horizons, with the same products added in the same order, and
gives the same bits; who does what is as in `gluon_forward`. A program's tile is 128 keys, 64 to a group of warps, whose
keys and values stay while queries and their outputs' gradients, 64 at a time, come by. The gradient of the values is
multiplied while that of the logits is made.

On an H100 (2026-11-26, medians of 7 rounds of calls in a row, bf16, T = 2048): 0.854 ms at the 160M's shape with 32
rows, where `fused_kernel` takes 1.03; 0.598 and 0.686 at the 60M's with 32, 0.595 and 0.679 at the 320M's with 16. The
floor, four products at 989 TFLOP/s, is 0.417 ms at the 160M's. The gradient of the queries written this way was slower
than `product_kernel` (0.362 and 0.344), which waits for memory.

Words as in `triton_forward`.
"""

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

from small_doge.ops.dynamic_mask_attention.gluon_forward import HEAD, KEYS
from small_doge.ops.dynamic_mask_attention.gluon_queue import described, queue, take
from small_doge.ops.dynamic_mask_attention.triton_forward import LOG2E

SQUARE = gl.constexpr(64)
"""Keys of a group of warps, queries of a step, and both of a square of what is kept."""
STAGES = gl.constexpr(3)
"""Steps whose queries there is room for."""


@gluon.jit
def load_steps(descriptors, queue_ptr, held, rings, barriers, groups, blocks, steps, room, rows, R: gl.constexpr):
    """The loading warp's part: of each tile keys and values, then step by step what a head's queries bring."""
    q_desc, k_desc, v_desc, grad_desc, rows_desc = descriptors
    key, value = held
    q, grad, lse, delta = rings
    held_full, held_empty, full, empty = barriers
    step_turn = 0
    turn = 0
    piece = take(queue_ptr, turn)
    while piece >= 0:
        block = piece % blocks
        bg = piece // blocks
        b = bg // groups
        g = bg % groups
        mbarrier.wait(held_empty, turn % 2 ^ 1)
        mbarrier.expect(held_full, 2 * KEYS * HEAD * key.dtype.primitive_bitwidth // 8)
        for half in gl.static_range(2):
            at = block * KEYS + half * SQUARE
            tma.async_copy_global_to_shared(k_desc, [b, g, at, 0], held_full, key.index(half))
            tma.async_copy_global_to_shared(v_desc, [b, g, at, 0], held_full, value.index(half))
        for step in range(2 * block * R, steps * R):
            stage = step_turn % STAGES
            at = step // R * SQUARE
            r = step % R
            mbarrier.wait(empty.index(stage), step_turn // STAGES % 2 ^ 1)
            bar = full.index(stage)
            mbarrier.expect(bar, 2 * SQUARE * HEAD * q.dtype.primitive_bitwidth // 8 + 2 * SQUARE * 4)
            tma.async_copy_global_to_shared(q_desc, [b, g * R + r, at, 0], bar, q.index(stage))
            tma.async_copy_global_to_shared(grad_desc, [b, g * R + r, at, 0], bar, grad.index(stage))
            at += (bg * R + r) * room
            tma.async_copy_global_to_shared(rows_desc, [at], bar, lse.index(stage))
            tma.async_copy_global_to_shared(rows_desc, [rows * room + at], bar, delta.index(stage))
            step_turn += 1
        turn += 1
        piece = take(queue_ptr, turn)


@gluon.jit
def differentiate(
    outputs, staged, queue_ptr, held, rings, barriers, score_at, groups, blocks, steps, queries, scale,
    HALF: gl.constexpr, R: gl.constexpr, LOG2E: gl.constexpr,
):  # fmt: skip
    """One group's part: dk, dv and dscore of half a tile's keys; the gradient of their logits is kept."""
    kept_desc, dk_desc, dv_desc, dscore_ptr, dscore_b, dscore_g, dscore_s = outputs
    kept, out = staged
    key, value = held
    q, grad, lse, delta = rings
    held_full, held_empty, full, empty = barriers
    score_ptr, score_b, score_g, score_s = score_at
    square: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, wide, 2)
    along_keys: gl.constexpr = gl.SliceLayout(1, square)
    along_queries: gl.constexpr = gl.SliceLayout(0, square)
    zeros = gl.zeros([SQUARE, SQUARE], gl.float32, square)
    step_turn = 0
    turn = 0
    piece = take(queue_ptr, turn)
    while piece >= 0:
        block = piece % blocks
        bg = piece // blocks
        b = bg // groups
        g = bg % groups
        own = 2 * block + HALF
        key_at = own * SQUARE + gl.arange(0, SQUARE, along_keys)
        present = key_at < queries
        at = b.to(gl.int64) * score_b + g * score_g + key_at * score_s
        bias = gl.expand_dims(gl.load(score_ptr + at, mask=present, other=0.0) * LOG2E, 1)
        grad_key = gl.zeros([SQUARE, HEAD], gl.float32, wide)
        grad_value = gl.zeros([SQUARE, HEAD], gl.float32, wide)
        grad_score = gl.zeros([SQUARE], gl.float32, along_keys)
        # Of this key/value head's first square, in the line of squares of every query's keys.
        first = bg * (steps * (steps + 1) // 2) + own
        mbarrier.wait(held_full, turn % 2)
        own_key = key.index(HALF).reshape([SQUARE, HEAD])
        own_value = value.index(HALF).reshape([SQUARE, HEAD])
        for _ in range(HALF * R):
            # Queries before all of this group's keys.
            mbarrier.wait(full.index(step_turn % STAGES), step_turn // STAGES % 2)
            mbarrier.arrive(empty.index(step_turn % STAGES), count=1)
            step_turn += 1
        for step in range(own * R, steps * R):
            tile = step // R
            stage = step_turn % STAGES
            query = q.index(stage).reshape([SQUARE, HEAD])
            dout = grad.index(stage).reshape([SQUARE, HEAD])
            mbarrier.wait(full.index(stage), step_turn // STAGES % 2)
            logits = warpgroup_mma(own_key, query.permute((1, 0)), zeros, use_acc=False, is_async=True)
            dweights = warpgroup_mma(own_value, dout.permute((1, 0)), zeros, use_acc=False, is_async=True)
            row = gl.expand_dims(lse.index(stage).load(along_queries), 0)
            logits = warpgroup_mma_wait(1, [logits])
            weights = gl.exp2(logits * (scale * LOG2E) + bias - row)
            # Some queries are before some key.
            if tile == own:
                token = tile * SQUARE + gl.arange(0, SQUARE, along_queries)
                weights = gl.where(gl.expand_dims(token, 0) >= gl.expand_dims(key_at, 1), weights, 0.0)
            rounded = gl.convert_layout(weights.to(q.dtype), operand)
            grad_value = warpgroup_mma(rounded, dout, grad_value, is_async=True)
            row = gl.expand_dims(delta.index(stage).load(along_queries), 0)
            dweights = warpgroup_mma_wait(1, [dweights])
            dlogits = weights * (dweights - row)
            grad_score += gl.sum(dlogits, 1)
            dlogits = dlogits.to(q.dtype)
            grad_key = warpgroup_mma(gl.convert_layout(dlogits, operand), query, grad_key, is_async=True)
            # What lay there two steps before has been read by then.
            tma.store_wait(1)
            kept.index(step % 2).store(dlogits)
            fence_async_shared()
            place = ((first + tile * (tile + 1) // 2) * R + step % R) * SQUARE
            tma.async_copy_shared_to_global(kept_desc, [place, 0], kept.index(step % 2))
            grad_value, grad_key = warpgroup_mma_wait(0, [grad_value, grad_key])
            mbarrier.arrive(empty.index(stage), count=1)
            step_turn += 1
        mbarrier.arrive(held_empty, count=1)
        at = b.to(gl.int64) * dscore_b + g * dscore_g + key_at * dscore_s
        gl.store(dscore_ptr + at, grad_score, mask=present)
        tma.store_wait(0)
        out.reshape([SQUARE, HEAD]).store((grad_key * scale).to(out.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dk_desc, [b, g, own * SQUARE, 0], out)
        tma.store_wait(0)
        out.reshape([SQUARE, HEAD]).store(grad_value.to(out.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dv_desc, [b, g, own * SQUARE, 0], out)
        turn += 1
        piece = take(queue_ptr, turn)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=("blocks", "steps", "queries", "room", "rows"))
def gluon_key_kernel(
    q_desc, k_desc, v_desc, grad_desc, rows_desc, kept_desc, dk_desc, dv_desc,
    score_ptr, dscore_ptr, queue_ptr, score_b, score_g, score_s, dscore_b, dscore_g, dscore_s,
    groups, blocks, steps, queries, room, rows, scale, R: gl.constexpr, LOG2E: gl.constexpr,
):  # fmt: skip
    key = gl.allocate_shared_memory(k_desc.dtype, [2, 1, 1, SQUARE, HEAD], k_desc.layout)
    value = gl.allocate_shared_memory(v_desc.dtype, [2, 1, 1, SQUARE, HEAD], v_desc.layout)
    q = gl.allocate_shared_memory(q_desc.dtype, [STAGES, 1, 1, SQUARE, HEAD], q_desc.layout)
    grad = gl.allocate_shared_memory(grad_desc.dtype, [STAGES, 1, 1, SQUARE, HEAD], grad_desc.layout)
    lse = gl.allocate_shared_memory(gl.float32, [STAGES, SQUARE], rows_desc.layout)
    delta = gl.allocate_shared_memory(gl.float32, [STAGES, SQUARE], rows_desc.layout)
    kept0 = gl.allocate_shared_memory(kept_desc.dtype, [2, SQUARE, SQUARE], kept_desc.layout)
    kept1 = gl.allocate_shared_memory(kept_desc.dtype, [2, SQUARE, SQUARE], kept_desc.layout)
    out = gl.allocate_shared_memory(dk_desc.dtype, [2, 1, 1, SQUARE, HEAD], dk_desc.layout)
    held_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    held_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    # Full once its bytes have come; empty once both groups have read it.
    mbarrier.init(held_full, count=1)
    mbarrier.init(held_empty, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    descriptors = (q_desc, k_desc, v_desc, grad_desc, rows_desc)
    outputs = (kept_desc, dk_desc, dv_desc, dscore_ptr, dscore_b, dscore_g, dscore_s)
    held = (key, value)
    rings = (q, grad, lse, delta)
    barriers = (held_full, held_empty, full, empty)
    score_at = (score_ptr, score_b, score_g, score_s)
    gl.warp_specialize(
        [
            (
                differentiate,
                (outputs, (kept0, out.index(0)), queue_ptr, held, rings, barriers, score_at,
                 groups, blocks, steps, queries, scale, 0, R, LOG2E),
            ),
            (
                differentiate,
                (outputs, (kept1, out.index(1)), queue_ptr, held, rings, barriers, score_at,
                 groups, blocks, steps, queries, scale, 1, R, LOG2E),
            ),
            (load_steps, (descriptors, queue_ptr, held, rings, barriers, groups, blocks, steps, room, rows, R)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def gluon_key_pass(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    grad: Tensor,
    rows: Tensor,
    kept: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    *,
    scale: float,
    together: int,
) -> None:
    """Fills `grads`, of keys, values and scores, and `kept`, from `rows`: as `fused_kernel` does."""
    batch, heads, queries, _ = query.shape
    groups = key.shape[1]
    blocks, steps = triton.cdiv(queries, KEYS.value), triton.cdiv(queries, SQUARE.value)
    line = queue(batch * groups, blocks, together, query.device, last_heaviest=False)
    grad_key, grad_value, grad_score = grads
    gluon_key_kernel[(line.shape[1],)](
        *(described(x, SQUARE.value) for x in (query, key, value, grad, rows.view(-1), kept, grad_key, grad_value)),
        *(score, grad_score, line, *score.stride(), *grad_score.stride()),
        *(groups, blocks, steps, queries, rows.shape[-1], batch * heads, scale),
        R=heads // groups,
        LOG2E=LOG2E.value,
        num_warps=4,
    )
