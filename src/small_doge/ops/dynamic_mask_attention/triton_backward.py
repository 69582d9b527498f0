"""The backward kernels: one pass over queries for their gradient, one over keys for those of keys, values and scores.

Words and layout as in `triton_forward`. The key pass writes each key's gradient in place where there is one span; with
lists a key stands in one list for each span that it lives through, so each list writes its part to a *slot*, a key's
slots lie side by side, and `gather_kernel` adds them in order: no atomics, the same bits every time.
"""

import triton
import triton.language as tl

from small_doge.ops.dynamic_mask_attention.triton_forward import (
    LENGTHS,
    LOG2E,
    first_alive,
    heaviest_first,
    load_rows,
)


@triton.jit
def _query_span(
    grad_query,
    query,
    grad,
    lse,
    delta,
    position,
    k_ptr,
    v_ptr,
    score_ptr,
    end_ptr,
    index_ptr,
    k_s,
    v_s,
    score_s,
    scale,
    start,
    stop,
    D: tl.constexpr,
    DP: tl.constexpr,
    BN: tl.constexpr,
    MASKED: tl.constexpr,
    LISTED: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    for at in range(start, stop, BN):
        entry = at + tl.arange(0, BN)
        present = entry < stop
        if LISTED:
            if CAUSAL:
                key_at = tl.load(index_ptr + entry, mask=present, other=0)
            else:
                key_at = tl.load(index_ptr + entry)
        else:
            key_at = entry
        key = load_rows(k_ptr, key_at, k_s, present, D, DP, CAUSAL and not LISTED)
        value = load_rows(v_ptr, key_at, v_s, present, D, DP, CAUSAL and not LISTED)
        if CAUSAL:
            score = tl.load(score_ptr + key_at * score_s, mask=present, other=0.0)
        else:
            score = tl.load(score_ptr + key_at * score_s)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale + (score * LOG2E)[None, :]
        weights = tl.exp2(logits - lse[:, None])
        if MASKED:
            if CAUSAL:
                end = tl.load(end_ptr + entry, mask=present, other=0)
            else:
                end = tl.load(end_ptr + entry)
            weights = tl.where(position[:, None] < end[None, :], weights, 0.0)
        if CAUSAL:
            weights = tl.where((position[:, None] >= key_at[None, :]) & present[None, :], weights, 0.0)
        grad_weights = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
        grad_logits = weights * (grad_weights - delta[:, None])
        grad_query = tl.dot(grad_logits.to(key.dtype), key, grad_query, input_precision=PRECISION)
    return grad_query


@triton.jit(do_not_specialize=LENGTHS)
def query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    score_ptr,
    end_ptr,
    reach_ptr,
    index_ptr,
    seen_ptr,
    out_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    q_b,
    q_h,
    q_t,
    k_b,
    k_g,
    k_s,
    v_b,
    v_g,
    v_s,
    score_b,
    score_g,
    score_s,
    out_b,
    out_h,
    out_t,
    grad_b,
    grad_h,
    grad_t,
    dq_b,
    dq_h,
    dq_t,
    groups,
    end_groups,
    queries,
    keys,
    span,
    spans,
    length,
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
    LISTED: tl.constexpr,
    TOGETHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of BM rows, and their delta = sum(grad * out) for the key pass. `scale` is the plain one."""
    tiles = tl.cdiv(span * R, BM)
    place, bg = heaviest_first(spans * tiles, TOGETHER)
    tile = spans * tiles - 1 - place
    c = tile // tiles
    tile = tile - c * tiles
    b = bg // groups
    g = bg - b * groups
    first = keys - queries
    row = tile * BM + tl.arange(0, BM)
    token = c * span + row // R
    head = g * R + row % R
    present = (row < span * R) & (token < queries)
    position = first + token
    last_token = tl.minimum(c * span + (tile * BM + BM - 1) // R, tl.minimum((c + 1) * span, queries) - 1)
    first_token = tl.minimum(c * span + tile * BM // R, last_token)

    b64 = b.to(tl.int64)
    k_ptr += b64 * k_b + g * k_g
    v_ptr += b64 * v_b + g * v_g
    score_ptr += b64 * score_b + g * score_g
    start = 0
    if LISTED:
        entries = bg.to(tl.int64) * spans + c
        index_ptr += entries * length
        stop = tl.load(seen_ptr + bg * queries + last_token)
        causal_from = tl.load(seen_ptr + bg * queries + first_token) // BN * BN
    else:
        entries = (b * end_groups + g % end_groups).to(tl.int64)
        stop = first + last_token + 1
        causal_from = (first + first_token + 1) // BN * BN
    if MASKED:
        end_ptr += entries * length
        start = first_alive(reach_ptr + entries * granules, granules, first + first_token, GRANULES, GRANULE_SIZE, BN)

    query = load_rows(q_ptr + b64 * q_b, head * q_h + token * q_t, 1, present, D, DP, True)
    grad = load_rows(grad_ptr + b64 * grad_b, head * grad_h + token * grad_t, 1, present, D, DP, True)
    out = load_rows(out_ptr + b64 * out_b, head * out_h + token * out_t, 1, present, D, DP, True)
    flat = (b64 * groups * R + head) * queries + token
    lse = tl.load(lse_ptr + flat, mask=present, other=float("inf"))
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + flat, delta, mask=present)

    grad_query = tl.zeros([BM, DP], dtype=tl.float32)
    grad_query = _query_span(
        grad_query, query, grad, lse, delta, position, k_ptr, v_ptr, score_ptr, end_ptr, index_ptr, k_s, v_s, score_s,
        scale * LOG2E, start, causal_from, D, DP, BN, MASKED, LISTED, False, PRECISION,
    )  # fmt: skip
    grad_query = _query_span(
        grad_query, query, grad, lse, delta, position, k_ptr, v_ptr, score_ptr, end_ptr, index_ptr, k_s, v_s, score_s,
        scale * LOG2E, tl.maximum(start, causal_from), stop, D, DP, BN, MASKED, LISTED, True, PRECISION,
    )  # fmt: skip
    d = tl.arange(0, DP)
    dq_at = dq_ptr + b64 * dq_b + (head * dq_h + token * dq_t)[:, None] + d[None, :]
    tl.store(dq_at, (grad_query * scale).to(dq_ptr.dtype.element_ty), mask=present[:, None] & (d < D)[None, :])


@triton.jit
def _key_span(
    grad_key,
    grad_value,
    grad_score,
    key,
    value,
    score,
    key_at,
    end,
    q_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    q_h,
    q_t,
    grad_h,
    grad_t,
    queries,
    first,
    token0,
    head0,
    scale,
    start,
    stop,
    rows,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    for at in range(start, stop, BM):
        row = at + tl.arange(0, BM)
        token = token0 + row // R
        head = head0 + row % R
        present = row < rows
        flat = head * queries + token
        query = load_rows(q_ptr, head * q_h + token * q_t, 1, present, D, DP, not EVEN)
        if EVEN:
            lse = tl.load(lse_ptr + flat)
        else:
            lse = tl.load(lse_ptr + flat, mask=present, other=float("inf"))
        logits = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale + score[:, None]
        weights = tl.exp2(logits - lse[None, :])
        position = first + token
        if MASKED:
            weights = tl.where(position[None, :] < end[:, None], weights, 0.0)
        if CAUSAL:
            weights = tl.where(position[None, :] >= key_at[:, None], weights, 0.0)
        grad = load_rows(grad_ptr, head * grad_h + token * grad_t, 1, present, D, DP, not EVEN)
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision=PRECISION)
        grad_weights = tl.dot(value, tl.trans(grad), input_precision=PRECISION)
        if EVEN:
            delta = tl.load(delta_ptr + flat)
        else:
            delta = tl.load(delta_ptr + flat, mask=present, other=0.0)
        grad_logits = weights * (grad_weights - delta[None, :])
        grad_score += tl.sum(grad_logits, 1)
        grad_key = tl.dot(grad_logits.to(query.dtype), query, grad_key, input_precision=PRECISION)
    return grad_key, grad_value, grad_score


@triton.jit(do_not_specialize=LENGTHS)
def key_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    score_ptr,
    end_ptr,
    index_ptr,
    seen_ptr,
    slot_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    dscore_ptr,
    q_b,
    q_h,
    q_t,
    k_b,
    k_g,
    k_s,
    v_b,
    v_g,
    v_s,
    score_b,
    score_g,
    score_s,
    grad_b,
    grad_h,
    grad_t,
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
    keys,
    span,
    spans,
    length,
    scale,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    MASKED: tl.constexpr,
    LISTED: tl.constexpr,
    TOGETHER: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of BN entries over the rows of their span that see them: dk, dv and dscore, or their slots."""
    tiles = tl.cdiv(length, BN)
    tile, bg = heaviest_first(spans * tiles, TOGETHER)
    c = tile // tiles
    tile = tile - c * tiles
    b = bg // groups
    g = bg - b * groups
    first = keys - queries
    token0 = c * span
    token_stop = tl.minimum(token0 + span, queries)
    entry = tile * BN + tl.arange(0, BN)
    b64 = b.to(tl.int64)
    if LISTED:
        entries = bg.to(tl.int64) * spans + c
        count = tl.load(seen_ptr + bg * queries + token_stop - 1)
        present = entry < count
        key_at = tl.load(index_ptr + entries * length + entry, mask=present, other=0)
        first_key = tl.load(index_ptr + entries * length + tile * BN, mask=tile * BN < count, other=0)
        last_key = tl.max(key_at, 0)
    else:
        entries = (b * end_groups + g % end_groups).to(tl.int64)
        count = keys
        present = entry < count
        key_at = entry
        first_key = tile * BN
        last_key = tile * BN + BN - 1
    token_from = tl.maximum(first_key - first, token0)
    token_whole = tl.maximum(last_key - first, token0)
    end = key_at
    if MASKED:
        end = tl.load(end_ptr + entries * length + entry, mask=present, other=0)
        token_stop = tl.minimum(token_stop, tl.max(end, 0) - first)
    if tile * BN < count:
        rows = (tl.minimum(token0 + span, queries) - token0) * R
        start = (token_from - token0) * R // BM * BM
        whole = tl.cdiv((token_whole - token0) * R, BM) * BM
        stop = (token_stop - token0) * R

        key = load_rows(k_ptr + b64 * k_b + g * k_g, key_at, k_s, present, D, DP, True)
        value = load_rows(v_ptr + b64 * v_b + g * v_g, key_at, v_s, present, D, DP, True)
        score = tl.load(score_ptr + b64 * score_b + g * score_g + key_at * score_s, mask=present, other=0.0) * LOG2E
        grad_key = tl.zeros([BN, DP], dtype=tl.float32)
        grad_value = tl.zeros([BN, DP], dtype=tl.float32)
        grad_score = tl.zeros([BN], dtype=tl.float32)
        q_ptr += b64 * q_b
        grad_ptr += b64 * grad_b
        lse_ptr += b64 * groups * R * queries
        delta_ptr += b64 * groups * R * queries
        grad_key, grad_value, grad_score = _key_span(
            grad_key, grad_value, grad_score, key, value, score, key_at, end, q_ptr, grad_ptr, lse_ptr, delta_ptr,
            q_h, q_t, grad_h, grad_t, queries, first, token0, g * R, scale * LOG2E, start, tl.minimum(whole, stop),
            rows, R, D, DP, BM, MASKED, True, EVEN, PRECISION,
        )  # fmt: skip
        grad_key, grad_value, grad_score = _key_span(
            grad_key, grad_value, grad_score, key, value, score, key_at, end, q_ptr, grad_ptr, lse_ptr, delta_ptr,
            q_h, q_t, grad_h, grad_t, queries, first, token0, g * R, scale * LOG2E, tl.maximum(start, whole), stop,
            rows, R, D, DP, BM, MASKED, False, EVEN, PRECISION,
        )  # fmt: skip
        if LISTED:
            at = tl.load(slot_ptr + entries * length + entry, mask=present, other=0).to(tl.int64)
        else:
            at = key_at.to(tl.int64)
        d = tl.arange(0, DP)
        stored = present[:, None] & (d < D)[None, :]
        dk_at = dk_ptr + b64 * dk_b + g.to(tl.int64) * dk_g + (at * dk_s)[:, None] + d[None, :]
        dv_at = dv_ptr + b64 * dv_b + g.to(tl.int64) * dv_g + (at * dv_s)[:, None] + d[None, :]
        tl.store(dk_at, (grad_key * scale).to(dk_ptr.dtype.element_ty), mask=stored)
        tl.store(dv_at, grad_value.to(dv_ptr.dtype.element_ty), mask=stored)
        tl.store(dscore_ptr + b64 * dscore_b + g * dscore_g + at * dscore_s, grad_score, mask=present)


@triton.jit(do_not_specialize=LENGTHS)
def gather_kernel(
    parts_ptr,
    slot0_ptr,
    count_ptr,
    out_ptr,
    parts_r,
    out_b,
    out_g,
    out_s,
    groups,
    keys,
    D: tl.constexpr,
    DP: tl.constexpr,
    BN: tl.constexpr,
):
    """The gradient of BN keys: the sum of each key's slots, in order of time; 0 for a key that was never seen."""
    key_at = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1)
    b = row // groups
    g = row - b * groups
    present = key_at < keys
    slot0 = tl.load(slot0_ptr + row * keys + key_at, mask=present, other=0).to(tl.int64)
    count = tl.load(count_ptr + row * keys + key_at, mask=present, other=0)
    d = tl.arange(0, DP)
    total = tl.zeros([BN, DP], dtype=tl.float32)
    parts_ptr += row.to(tl.int64) * parts_r
    for turn in range(0, tl.max(count, 0)):
        at = parts_ptr + (slot0 + turn)[:, None] * D + d[None, :]
        total += tl.load(at, mask=(turn < count)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    out_at = out_ptr + b.to(tl.int64) * out_b + g * out_g + key_at[:, None] * out_s + d[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=present[:, None] & (d < D)[None, :])
