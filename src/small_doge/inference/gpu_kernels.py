"""Triton kernels of the token step; `gpu_step` is their definition.

A *lane* is a place in the batch, `lanes` says which row of the cache it works on (-1: none). The residual stream is
kept in fp32. Few lanes are served by matrix-vector kernels, where a program reads its rows of the matrix once, whole,
for all lanes, and the norm before and the residual after are folded in: five kernels a layer. Many lanes go through
cuBLAS, with one kernel between two products.

K is what a product sums over, KP the power of two above it, M the number of lanes, BN outputs of a program.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(0x7FFFFFFF)


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """Programmatic dependent launch: the kernel after this one may start, and load its weights, from now on."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_last(OVERLAP: tl.constexpr):
    """Wait until the kernel before has written everything. Before this, nothing but weights may be read."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def load_matrix(w_ptr, n, N, K: tl.constexpr, KP: tl.constexpr):
    """Rows n of a [N, K] matrix, in fp32, 0 beyond."""
    k = tl.arange(0, KP)
    tile = tl.load(w_ptr + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
    return tile.to(tl.float32)


@triton.jit
def load_normed(x_ptr, norm_ptr, eps, K: tl.constexpr, KP: tl.constexpr):
    """A vector of K after RMSNorm."""
    k = tl.arange(0, KP)
    x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    weight = tl.load(norm_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, 0) / K + eps) * weight


@triton.jit
def project_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    out_ptr,
    eps,
    N,
    K: tl.constexpr,
    KP: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """out[m] = W norm(x[m])."""
    let_next_begin(OVERLAP)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    w = load_matrix(w_ptr, n, N, K, KP)
    wait_for_last(OVERLAP)
    for m in tl.static_range(M):
        x = load_normed(x_ptr + m * K, norm_ptr, eps, K, KP)
        y = tl.sum(w * x[None, :], 1)
        tl.store(out_ptr + m * N + n, y.to(out_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def gated_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    out_ptr,
    eps,
    N,
    K: tl.constexpr,
    KP: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """out[m] = silu(W_gate y) * (W_up y) with y = norm(x[m]); W is [2N, K], the gate first."""
    let_next_begin(OVERLAP)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    w_gate = load_matrix(w_ptr, n, N, K, KP)
    w_up = load_matrix(w_ptr + N * K, n, N, K, KP)
    wait_for_last(OVERLAP)
    for m in tl.static_range(M):
        x = load_normed(x_ptr + m * K, norm_ptr, eps, K, KP)
        gate = tl.sum(w_gate * x[None, :], 1)
        up = tl.sum(w_up * x[None, :], 1)
        y = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(out_ptr + m * N + n, y.to(out_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def output_kernel(
    in_ptr,
    top_ptr,
    total_ptr,
    w_ptr,
    residual_ptr,
    x_ptr,
    N,
    K: tl.constexpr,
    KP: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    H: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """x[m] = residual * x[m] + W a[m], in place; with SPLITS, a is put together from the parts of `attend_kernel`."""
    let_next_begin(OVERLAP)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, KP)
    w = load_matrix(w_ptr, n, N, K, KP)
    residual = tl.load(residual_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    wait_for_last(OVERLAP)
    for m in tl.static_range(M):
        if SPLITS == 0:
            a = tl.load(in_ptr + m * K + k, mask=k < K, other=0.0).to(tl.float32)
        else:
            part = m * SPLITS + tl.arange(0, SPLITS)
            inside = (k < K)[None, :]
            of_head = part[:, None] * H + (k // (K // H))[None, :]
            top = tl.load(top_ptr + of_head, mask=inside, other=0.0)
            weight = tl.exp2(top - tl.max(top, 0)[None, :])
            total = tl.sum(tl.load(total_ptr + of_head, mask=inside, other=1.0) * weight, 0)
            parts = tl.load(in_ptr + part[:, None] * K + k[None, :], mask=inside, other=0.0)
            a = tl.sum(parts * weight, 0) / total
        x = tl.load(x_ptr + m * N + n, mask=n < N, other=0.0)
        tl.store(x_ptr + m * N + n, residual * x + tl.sum(w * a[None, :], 1), mask=n < N)


@triton.jit
def norm_kernel(x_ptr, norm_ptr, out_ptr, eps, K: tl.constexpr, KP: tl.constexpr):
    """out[m] = norm(x[m]): one lane a program."""
    k = tl.arange(0, KP)
    m = tl.program_id(0)
    y = load_normed(x_ptr + m * K, norm_ptr, eps, K, KP)
    tl.store(out_ptr + m * K + k, y.to(out_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def residual_norm_kernel(x_ptr, delta_ptr, residual_ptr, norm_ptr, out_ptr, eps, K: tl.constexpr, KP: tl.constexpr):
    """x[m] = residual * x[m] + delta[m], in place, and out[m] = norm(x[m])."""
    k = tl.arange(0, KP)
    inside = k < K
    at = tl.program_id(0) * K + k
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    delta = tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(residual_ptr + k, mask=inside, other=0.0).to(tl.float32) * x + delta
    tl.store(x_ptr + at, x, mask=inside)
    weight = tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / K + eps) * weight
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def silu_kernel(in_ptr, out_ptr, N: tl.constexpr, BN: tl.constexpr):
    """out[m] = silu(gate) * up, with gate and up the halves of in[m], [2N]."""
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    m = tl.program_id(0)
    gate = tl.load(in_ptr + m * 2 * N + n, mask=n < N, other=0.0).to(tl.float32)
    up = tl.load(in_ptr + m * 2 * N + N + n, mask=n < N, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + m * N + n, y.to(out_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def comparable(score):
    """`round_score` of scores that are not negative, as integers in the same order."""
    return (score.to(tl.int32, bitcast=True) + 128) & -256


@triton.jit
def load_rotated(at_ptr, norm_ptr, cos, sin, eps, present, D: tl.constexpr, DP: tl.constexpr, NORM: tl.constexpr):
    """[rows, DP] heads after the norm over D and the rotary embedding; at_ptr [rows, 1] points to where each starts."""
    d = tl.arange(0, DP)
    partner = tl.where(d < D // 2, d + D // 2, d - D // 2)
    mask = present & (d < D)[None, :]
    x = tl.load(at_ptr + d[None, :], mask=mask, other=0.0).to(tl.float32)
    y = tl.load(at_ptr + partner[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x = x * inverse * tl.load(norm_ptr + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        y = y * inverse * tl.load(norm_ptr + partner, mask=d < D, other=0.0).to(tl.float32)[None, :]
    return x * cos[None, :] + tl.where(d < D // 2, -1.0, 1.0)[None, :] * y * sin[None, :]


# A layer's own entries begin anywhere: without this a kernel would be compiled for each alignment.
@triton.jit(do_not_specialize_on_alignment=["victims_ptr"])
def attend_kernel(
    qkv_ptr,
    q_norm_ptr,
    k_norm_ptr,
    dt_ptr,
    a_ptr,
    freq_ptr,
    lanes_ptr,
    active_ptr,
    length_ptr,
    keys_ptr,
    values_ptr,
    scores_ptr,
    positions_ptr,
    victims_ptr,
    out_ptr,
    top_ptr,
    total_ptr,
    victims_stride,
    slots,
    eps,
    scale,
    rope_scaling,
    SLOTS_P: tl.constexpr,
    H: tl.constexpr,
    KV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    RP: tl.constexpr,
    WIDE: tl.constexpr,
    BN: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One lane, one cache head, one part of its slots: insert the new key, attend, and find who leaves next.

    Only part 0 writes the cache, and the other parts never use the slot it writes: which one that is was found by the
    step before, and the entry for the step after is another (`victims`, by the parity of the length). With PARTS, out
    is the unnormalized sum [lane, split, H D] in fp32, with its peak (base 2) and total [lane, split, H].
    """
    let_next_begin(OVERLAP)
    wait_for_last(OVERLAP)
    lane = tl.program_id(0)
    g = tl.program_id(1)
    split = tl.program_id(2)
    # Loads that wait for one another cost more here than bytes do: no branch, and first what hangs on the lane alone.
    row = tl.load(lanes_ptr + lane)
    working = row >= 0
    row = tl.maximum(row, 0)
    working = working & (tl.load(active_ptr + row) == 1)
    length = tl.load(length_ptr + row)
    dtype = keys_ptr.dtype.element_ty
    d = tl.arange(0, DP)
    r = tl.arange(0, RP)
    R: tl.constexpr = H // G
    head = g * R + r
    kv = g // (G // KV)

    angle = length.to(tl.float32) * tl.load(freq_ptr + d % (D // 2))
    cos = tl.cos(angle) * rope_scaling
    sin = tl.sin(angle) * rope_scaling
    qkv_ptr += lane * (H + 2 * KV) * D
    present = (r < R)[:, None]
    query = load_rotated(qkv_ptr + (head * D)[:, None], q_norm_ptr, cos, sin, eps, present, D, DP, NORM).to(dtype)
    # Sixteen equal rows of the one new key, summed to one: the code for the queries serves it too.
    key_rows = load_rotated(
        qkv_ptr + (H + kv) * D + (r * 0)[:, None], k_norm_ptr, cos, sin, eps, (r < 1)[:, None], D, DP, NORM
    )
    key = tl.sum(key_rows, 0).to(dtype)
    value = tl.load(qkv_ptr + (H + KV + kv) * D + d, mask=d < D, other=0.0)

    wide = tl.arange(0, WIDE)
    all_values = tl.load(qkv_ptr + (H + KV) * D + wide, mask=wide < KV * D, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + g * KV * D + wide, mask=wide < KV * D, other=0.0).to(tl.float32)
    # Rounded as the projection of a prefill is, so that both compute the same score.
    t = tl.sum(all_values * dt, 0).to(dtype).to(tl.float32)
    score = tl.exp(tl.load(a_ptr + g) * tl.where(t > 20.0, t, tl.log(1.0 + tl.exp(t))))

    cache = row.to(tl.int64) * G + g
    keys_ptr += cache * slots * D
    values_ptr += cache * slots * D
    scores_ptr += cache * slots
    positions_ptr += cache * slots
    victims_ptr += cache
    full = length >= slots
    parity = length % 2
    slot = tl.where(full, tl.load(victims_ptr + parity * victims_stride), length)
    lowest = comparable(tl.load(scores_ptr + tl.minimum(slot, slots - 1)))
    stays_out = (full & (comparable(score) < lowest)).to(tl.int32)
    replaced = tl.where(stays_out == 1, -1, slot)
    seen = tl.where(working, tl.minimum(length, slots), 0)

    # The new key is not read back from the cache: part 0 begins with it.
    fresh = (split == 0) & (stays_out == 0)
    logit = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], 1) * (scale * LOG2E) + score * LOG2E
    # Finite, so that a part which has seen nothing never computes inf - inf.
    top = tl.where(fresh, logit, -1.0e30)
    total = tl.where(fresh, 1.0, 0.0) + tl.zeros([RP], dtype=tl.float32)
    weighted = tl.where(fresh, value.to(tl.float32)[None, :], 0.0) + tl.zeros([RP, DP], dtype=tl.float32)

    part = tl.cdiv(tl.cdiv(seen, SPLITS), BN) * BN
    start = split * part
    stop = tl.minimum(start + part, seen)
    for at in range(start, stop, BN):
        entry = at + tl.arange(0, BN)
        inside = entry < stop
        mask = inside[:, None] & (d < D)[None, :]
        cached_key = tl.load(keys_ptr + entry[:, None] * D + d[None, :], mask=mask, other=0.0)
        cached_score = tl.load(scores_ptr + entry, mask=inside, other=0.0)
        cached_value = tl.load(values_ptr + entry[:, None] * D + d[None, :], mask=mask, other=0.0)
        logits = tl.dot(query, tl.trans(cached_key), input_precision=PRECISION) * (scale * LOG2E)
        logits += (cached_score * LOG2E)[None, :]
        logits = tl.where((inside & (entry != replaced))[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, 1)
        weighted = weighted * fade[:, None]
        weighted = tl.dot(weights.to(dtype), cached_value, weighted, input_precision=PRECISION)
        top = new_top

    mask = present & (d < D)[None, :]
    if PARTS:
        at_part = lane * SPLITS + split
        tl.store(out_ptr + at_part * H * D + (head * D)[:, None] + d[None, :], weighted, mask=mask)
        tl.store(top_ptr + at_part * H + head, top, mask=r < R)
        tl.store(total_ptr + at_part * H + head, total, mask=r < R)
    else:
        out = weighted / total[:, None]
        tl.store(out_ptr + lane * H * D + (head * D)[:, None] + d[None, :], out.to(dtype), mask=mask)

    if (split == 0) & working:
        if stays_out == 0:
            tl.store(keys_ptr + slot * D + d, key, mask=d < D)
            tl.store(values_ptr + slot * D + d, value, mask=d < D)
            tl.store(scores_ptr + slot, score)
            tl.store(positions_ptr + slot, length)
        if length + 1 >= slots:
            entry = tl.arange(0, SLOTS_P)
            inside = entry < slots
            order = comparable(tl.load(scores_ptr + entry, mask=inside, other=0.0))
            position = tl.load(positions_ptr + entry, mask=inside, other=0)
            # What was just written may not be visible to all threads yet.
            order = tl.where(entry == replaced, comparable(score), order)
            position = tl.where(entry == replaced, length, position)
            order = tl.where(inside, order, FAR)
            oldest = tl.argmin(tl.where(order == tl.min(order, 0), position, FAR), 0)
            tl.store(victims_ptr + (1 - parity) * victims_stride, oldest)
