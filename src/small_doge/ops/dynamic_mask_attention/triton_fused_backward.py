"""The fused backward: five products instead of the seven of `triton_backward`, for one span without lists and S = T.

One pass over the blocks of keys finds the gradients of keys, values and scores in registers (four products), and keeps
that of the logits, dS, in half precision, in square tiles. A second kernel multiplies those with the keys, for the
gradient of the queries: no atomics, the same bits every time. dS takes about B * H * T * T bytes for a while.

The floor is the key pass's four products, behind which dS is written, and the reading of dS, behind which the fifth is
made. At B = 32, H = 4, G = 2, T = 2048, D = 128 that is 275 GFLOP and 0.54 GB: by an H100's data sheet (989 TFLOP/s of
bf16, 3.35 TB/s) 0.28 + 0.16 = 0.44 ms. Measured on one (2026-11-26, n = 3 rounds): 0.914 ms (0.913 to 0.920), 2.1 times
the floor; in a profile the key pass 0.630, the second kernel 0.225, `delta_kernel` 0.049. The two kernels of
`triton_backward` take 1.175 ms there, and cuDNN's backward, which has no scores, 0.951.

Words as in `triton_forward`, but a tile of rows is of one head here, and the R heads of a key/value head take turns.
Tiles of rows are loaded by the TMA: pointers and masks would cost registers, of which there are none to spare.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from small_doge.ops.dynamic_mask_attention.triton_forward import (
    LENGTHS,
    LOG2E,
    first_alive,
    granules,
    heaviest_first,
    load_rows,
    strides,
)
from small_doge.ops.dynamic_mask_attention.triton_tma_forward import fit


class Plan(NamedTuple):
    """The shapes of the work: of the key pass rows and keys of a tile, warps and software-pipelining stages, and of the
    second kernel rows of a tile, warps and stages. `rows` divides `keys`."""

    rows: int
    keys: int
    warps: int
    stages: int
    query_rows: int
    query_warps: int
    query_stages: int


@triton.jit(do_not_specialize=LENGTHS)
def delta_kernel(
    out_ptr,
    grad_ptr,
    lse_ptr,
    rows_ptr,
    out_b,
    out_h,
    out_t,
    grad_b,
    grad_h,
    grad_t,
    heads,
    queries,
    room,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
):
    """lse, and after it delta = sum(grad * out), of BM queries of one head; in the room after the last query, what
    makes weights and gradients 0."""
    token = tl.program_id(0) * BM + tl.arange(0, BM)
    row = tl.program_id(1)
    b = (row // heads).to(tl.int64)
    h = row % heads
    present = token < queries
    out = load_rows(out_ptr + b * out_b + h * out_h, token, out_t, present, D, DP, True)
    grad = load_rows(grad_ptr + b * grad_b + h * grad_h, token, grad_t, present, D, DP, True)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    lse = tl.load(lse_ptr + row * queries + token, mask=present, other=float("inf"))
    rows_ptr += row * room + token
    tl.store(rows_ptr, lse)
    tl.store(rows_ptr + tl.num_programs(1) * room, delta)


@triton.jit(do_not_specialize=LENGTHS)
def fused_kernel(
    q_desc,
    k_ptr,
    v_ptr,
    score_ptr,
    end_ptr,
    grad_desc,
    rows_desc,
    kept_desc,
    dk_ptr,
    dv_ptr,
    dscore_ptr,
    k_b,
    k_g,
    k_s,
    v_b,
    v_g,
    v_s,
    score_b,
    score_g,
    score_s,
    dk_b,
    dk_g,
    dk_s,
    dv_b,
    dv_g,
    dv_s,
    dscore_b,
    dscore_g,
    dscore_s,
    groups,
    end_groups,
    queries,
    scale,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    MASKED: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """dk, dv and dscore of BN keys; the gradient of their logits is kept."""
    blocks = tl.cdiv(queries, BN)
    block, bg = heaviest_first(blocks, TOGETHER)
    b = bg // groups
    g = bg - b * groups
    b64 = b.to(tl.int64)
    key_at = block * BN + tl.arange(0, BN)
    present = key_at < queries
    token_stop = queries
    end = key_at
    if MASKED:
        end = tl.load(end_ptr + (b64 * end_groups + g % end_groups) * queries + key_at, mask=present, other=0)
        token_stop = tl.minimum(queries, tl.max(end, 0))
    start = block * (BN // BM)
    stop = tl.cdiv(token_stop, BM)
    whole = tl.minimum(start + BN // BM, stop)

    key = load_rows(k_ptr + b64 * k_b + g * k_g, key_at, k_s, present, D, DP, True)
    value = load_rows(v_ptr + b64 * v_b + g * v_g, key_at, v_s, present, D, DP, True)
    score = tl.load(score_ptr + b64 * score_b + g * score_g + key_at * score_s, mask=present, other=0.0) * LOG2E
    grad_key = tl.zeros([BN, DP], dtype=tl.float32)
    grad_value = tl.zeros([BN, DP], dtype=tl.float32)
    grad_score = tl.zeros([BN], dtype=tl.float32)
    for turn in range(start * R, stop * R):
        tile = turn // R
        r = turn - tile * R
        # Of all heads of all batch rows, and of this batch row's.
        row = bg * R + r
        head = g * R + r
        query = q_desc.load([b, head, tile * BM, 0]).reshape(BM, DP)
        lse = rows_desc.load([0, row, tile * BM]).reshape(BM)
        logits = tl.dot(key, tl.trans(query)) * (scale * LOG2E) + score[:, None]
        weights = tl.exp2(logits - lse[None, :])
        token = tile * BM + tl.arange(0, BM)
        if MASKED:
            weights = tl.where(token[None, :] < end[:, None], weights, 0.0)
        # Before `whole`, some queries are before some key.
        if turn < whole * R:
            weights = tl.where(token[None, :] >= key_at[:, None], weights, 0.0)
        grad = grad_desc.load([b, head, tile * BM, 0]).reshape(BM, DP)
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value)
        grad_weights = tl.dot(value, tl.trans(grad))
        delta = rows_desc.load([1, row, tile * BM]).reshape(BM)
        grad_logits = weights * (grad_weights - delta[None, :])
        grad_score += tl.sum(grad_logits, 1)
        rounded = grad_logits.to(query.dtype)
        grad_key = tl.dot(rounded, query, grad_key)
        # The square tile of this key block and these queries, [BN, BN]: those of a query's key blocks lie in a row.
        square = tile * BM // BN
        place = bg * (blocks * (blocks + 1) // 2) + square * (square + 1) // 2 + block
        kept_desc.store([(place * R + r) * BN, tile * BM % BN], rounded)
    d = tl.arange(0, DP)
    stored = present[:, None] & (d < D)[None, :]
    dk_at = dk_ptr + b64 * dk_b + g * dk_g + (key_at * dk_s)[:, None] + d[None, :]
    dv_at = dv_ptr + b64 * dv_b + g * dv_g + (key_at * dv_s)[:, None] + d[None, :]
    tl.store(dk_at, (grad_key * scale).to(dk_ptr.dtype.element_ty), mask=stored)
    tl.store(dv_at, grad_value.to(dv_ptr.dtype.element_ty), mask=stored)
    tl.store(dscore_ptr + b64 * dscore_b + g * dscore_g + key_at * dscore_s, grad_score, mask=present)


@triton.jit(do_not_specialize=LENGTHS)
def product_kernel(
    kept_ptr,
    k_ptr,
    end_ptr,
    reach_ptr,
    dq_ptr,
    k_b,
    k_g,
    k_s,
    dq_b,
    dq_h,
    dq_t,
    groups,
    end_groups,
    queries,
    granules,
    scale,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GRANULES: tl.constexpr,
    GRANULE_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    EVEN: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """dq of BM of the R * BN rows of a block of BN queries: their kept tiles times the keys."""
    blocks = tl.cdiv(queries, BN)
    parts: tl.constexpr = R * BN // BM
    place, bg = heaviest_first(blocks * parts, TOGETHER)
    # The longest rows are the last, and so are the heads whose tiles were written last: the L2 cache still has some.
    square = blocks - 1 - place // parts
    row = place % parts * BM + tl.arange(0, BM)
    bg = tl.num_programs(0) // (blocks * parts) - 1 - bg
    b = bg // groups
    g = bg - b * groups
    b64 = b.to(tl.int64)
    r, m = row // BN, row % BN
    token = square * BN + m
    kept_ptr += (bg.to(tl.int64) * (blocks * (blocks + 1) // 2) + square * (square + 1) // 2) * (R * BN * BN)
    k_ptr += b64 * k_b + g * k_g
    start = 0
    if MASKED:
        entries = b64 * end_groups + g % end_groups
        end_ptr += entries * queries
        start = first_alive(reach_ptr + entries * granules, granules, square * BN, GRANULES, GRANULE_SIZE, BN) // BN

    n = tl.arange(0, BN)
    at = r * (BN * BN) + m
    grad_query = tl.zeros([BM, DP], dtype=tl.float32)
    for block in range(start, square + 1):
        key_at = block * BN + n
        tile_at = kept_ptr + block * (R * BN * BN) + n[:, None] * BN + at[None, :]
        if MASKED:
            # Nothing was written for queries after every key's end.
            stop = tl.max(tl.load(end_ptr + key_at, mask=key_at < queries, other=0), 0)
            kept = tl.load(tile_at, mask=(token < stop)[None, :], other=0.0)
        else:
            kept = tl.load(tile_at)
        key = load_rows(k_ptr, key_at, k_s, key_at < queries, D, DP, not EVEN)
        grad_query = tl.dot(tl.trans(kept), key, grad_query)
    d = tl.arange(0, DP)
    dq_at = dq_ptr + b64 * dq_b + ((g * R + r) * dq_h + token * dq_t)[:, None] + d[None, :]
    tl.store(
        dq_at,
        (grad_query * scale).to(dq_ptr.dtype.element_ty),
        mask=(token < queries)[:, None] & (d < D)[None, :],
    )


def fused_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    end: Tensor | None,
    reach: Tensor | None,
    *,
    scale: float,
    plan: Plan,
    together: int,
    specialized: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of queries, keys, values and scores, in half precision, for as many keys as queries.

    ``together`` key/value heads have their programs side by side (`heaviest_first`). With ``specialized`` the key pass
    is that of `gluon_backward`, for the same bits.
    """
    batch, heads, queries, head_size = query.shape
    groups = key.shape[1]
    R = heads // groups
    grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), torch.empty_like(score)
    query, grad = fit(query), fit(grad)
    blocks = triton.cdiv(queries, plan.keys)
    room = blocks * plan.keys
    rows = torch.empty(2, batch * heads, room, dtype=torch.float32, device=query.device)
    # Square tiles up to the diagonal.
    tiles = batch * heads * blocks * (blocks + 1) // 2
    kept = torch.empty(tiles * plan.keys, plan.keys, dtype=query.dtype, device=query.device)
    size = {"queries": queries, "D": head_size, "DP": max(16, triton.next_power_of_2(head_size))}
    shape = {"groups": groups, "end_groups": 1 if end is None else end.shape[1], "R": R, "TOGETHER": together}
    shape |= {"MASKED": end is not None, "BN": plan.keys}

    delta_kernel[(room // plan.rows, batch * heads)](
        *(out, grad, lse, rows), *strides(out, grad), **size, heads=heads, room=room, BM=plan.rows
    )
    if specialized:
        # Not before, for Triton's interpreter has no Gluon.
        from small_doge.ops.dynamic_mask_attention.gluon_backward import gluon_key_pass

        gluon_key_pass(query, key, value, score, grad, rows, kept, grads[1:], scale=scale, together=together)
    else:
        tile = [1, 1, plan.rows, size["DP"]]
        fused_kernel[(blocks * batch * groups,)](
            *(
                TensorDescriptor.from_tensor(query, tile),
                key,
                value,
                score,
                end,
                TensorDescriptor.from_tensor(grad, tile),
            ),
            TensorDescriptor.from_tensor(rows, [1, 1, plan.rows]),
            TensorDescriptor.from_tensor(kept, [plan.keys, plan.rows]),
            *grads[1:],
            *strides(key, value, score, *grads[1:]),
            **size,
            **shape,
            scale=scale,
            BM=plan.rows,
            num_warps=plan.warps,
            num_stages=plan.stages,
        )
    query_rows = min(plan.query_rows, (R & -R) * plan.keys)
    product_kernel[(blocks * (R * plan.keys // query_rows) * batch * groups,)](
        *(kept, key, end, reach, grads[0]),
        *strides(key, grads[0]),
        **size,
        **shape,
        scale=scale,
        **granules(reach),
        BM=query_rows,
        EVEN=queries % plan.keys == 0,
        num_warps=plan.query_warps,
        num_stages=plan.query_stages,
    )
    return grads
