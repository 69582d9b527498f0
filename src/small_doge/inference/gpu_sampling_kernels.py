"""Triton kernels that draw the next tokens; `gpu_sampling` is their definition.

The vocabulary V goes by in blocks of BV, whose results one small kernel a lane puts together. A filter needs no sort:
its threshold is found by bisection over the ordered bits of the logits, all of a lane's logits held in registers.
"""

import triton
import triton.language as tl

from small_doge.inference.gpu_kernels import let_next_begin, wait_for_last

MAX_STOPS = tl.constexpr(8)


@triton.jit
def mix(x):
    """The finalizer of MurmurHash3, on uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def gumbel(seed, position, token):
    """Gumbel noise for the tokens of one row."""
    of_row = mix(mix(seed.to(tl.uint32)) ^ position.to(tl.uint32))
    hashed = mix(of_row + token.to(tl.uint32) * 0x9E3779B9)
    u = (hashed.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return -tl.log(tl.where(u < 1e-3, u * (1.0 + 0.5 * u), -tl.log(1.0 - u)))


@triton.jit
def adjust(raw, token, inside, row, V, seen_ptr, penalty_ptr, temperature, FILTERED: tl.constexpr):
    """Logits after the repetition penalty and the temperature; -inf beyond the vocabulary stays."""
    x = raw
    if FILTERED:
        penalty = tl.load(penalty_ptr + row)
        seen = tl.load(seen_ptr + row.to(tl.int64) * V + token, mask=inside, other=0) != 0
        x = tl.where(seen, tl.where(x > 0, x / penalty, x * penalty), x)
    return x / tl.where(temperature > 0, temperature, 1.0)


@triton.jit
def ordered(x):
    """Floats as integers in the same order; `unordered` is its inverse."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(x):
    return (x ^ ((x >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def threshold_kernel(
    logits_ptr,
    lanes_ptr,
    active_ptr,
    seen_ptr,
    penalty_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    threshold_ptr,
    V,
    VP: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The lowest adjusted logit of a lane that top-k, top-p and min-p let through."""
    let_next_begin(OVERLAP)
    wait_for_last(OVERLAP)
    lane = tl.program_id(0)
    row = tl.load(lanes_ptr + lane)
    if row < 0:
        return
    if tl.load(active_ptr + row) == 0:
        return
    token = tl.arange(0, VP)
    inside = token < V
    raw = tl.load(logits_ptr + lane.to(tl.int64) * V + token, mask=inside, other=float("-inf"))
    x = adjust(raw, token, inside, row, V, seen_ptr, penalty_ptr, tl.load(temperature_ptr + row), True)
    order = ordered(x)
    peak = tl.max(x, 0)
    highest = ordered(peak).to(tl.int64)

    # The highest threshold that k tokens reach. In 64 bits: the middle of two 32-bit integers must not overflow.
    k = tl.load(top_k_ptr + row)
    low = tl.full([], -(1 << 31), dtype=tl.int64)
    high = highest
    for _ in range(tl.where((k > 0) & (k < V), 32, 0)):
        middle = (low + high + 1) >> 1
        enough = tl.sum((order >= middle.to(tl.int32)).to(tl.int32), 0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)

    # The lowest threshold with less than the share p above it.
    p = tl.load(top_p_ptr + row)
    mass = tl.where(inside & (order >= low.to(tl.int32)), tl.exp(x - peak), 0.0)
    wanted = p * tl.sum(mass, 0)
    high = highest
    for _ in range(tl.where(p < 1.0, 32, 0)):
        middle = (low + high) >> 1
        less = tl.sum(tl.where(order > middle.to(tl.int32), mass, 0.0), 0) < wanted
        high = tl.where(less, middle, high)
        low = tl.where(less, low, middle + 1)
    lowest = tl.where(low == -(1 << 31), float("-inf"), unordered(low.to(tl.int32)))
    tl.store(threshold_ptr + lane, tl.maximum(lowest, peak + tl.log(tl.load(min_p_ptr + row))))


@triton.jit
def scan_kernel(
    logits_ptr,
    lanes_ptr,
    active_ptr,
    length_ptr,
    seed_ptr,
    seen_ptr,
    penalty_ptr,
    temperature_ptr,
    threshold_ptr,
    best_ptr,
    which_ptr,
    peak_ptr,
    total_ptr,
    V,
    FED: tl.constexpr,
    FILTERED: tl.constexpr,
    BV: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The best token of one block, and the block's share of the softmax under the model."""
    let_next_begin(OVERLAP)
    wait_for_last(OVERLAP)
    lane = tl.program_id(0)
    block = tl.program_id(1)
    row = tl.load(lanes_ptr + lane)
    if row < 0:
        return
    if tl.load(active_ptr + row) == 0:
        return
    token = block * BV + tl.arange(0, BV)
    inside = token < V
    raw = tl.load(logits_ptr + lane.to(tl.int64) * V + token, mask=inside, other=float("-inf"))
    temperature = tl.load(temperature_ptr + row)
    x = adjust(raw, token, inside, row, V, seen_ptr, penalty_ptr, temperature, FILTERED)
    if FILTERED:
        x = tl.where(x >= tl.load(threshold_ptr + lane), x, float("-inf"))
    if temperature > 0:
        x += gumbel(tl.load(seed_ptr + row), tl.load(length_ptr + row) + FED, token)
    peak = tl.max(raw, 0)
    at = lane * tl.num_programs(1) + block
    tl.store(best_ptr + at, tl.max(x, 0))
    tl.store(which_ptr + at, block * BV + tl.argmax(x, 0))
    tl.store(peak_ptr + at, peak)
    tl.store(total_ptr + at, tl.sum(tl.exp(raw - peak), 0))


@triton.jit
def record_kernel(
    logits_ptr,
    lanes_ptr,
    active_ptr,
    best_ptr,
    which_ptr,
    peak_ptr,
    total_ptr,
    tokens_ptr,
    log_probs_ptr,
    token_ptr,
    seen_ptr,
    length_ptr,
    count_ptr,
    budget_ptr,
    stopped_ptr,
    stops_ptr,
    embedding_ptr,
    x_ptr,
    V,
    capacity,
    blocks,
    FED: tl.constexpr,
    BP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Write the lane's token down, end the row if it is through, and begin the next step with the token's embedding.

    Launched with one warp: what it reads and then writes must not be read by a second one in between.
    """
    let_next_begin(OVERLAP)
    wait_for_last(OVERLAP)
    lane = tl.program_id(0)
    row = tl.load(lanes_ptr + lane)
    if row < 0:
        return
    if tl.load(active_ptr + row) == 0:
        return
    b = tl.arange(0, BP)
    at = lane * blocks + b
    best = tl.load(best_ptr + at, mask=b < blocks, other=float("-inf"))
    token = tl.load(which_ptr + lane * blocks + tl.argmax(best, 0))
    peaks = tl.load(peak_ptr + at, mask=b < blocks, other=float("-inf"))
    peak = tl.max(peaks, 0)
    total = tl.sum(tl.load(total_ptr + at, mask=b < blocks, other=0.0) * tl.exp(peaks - peak), 0)
    log_prob = tl.load(logits_ptr + lane.to(tl.int64) * V + token) - peak - tl.log(total)

    count = tl.load(count_ptr + row)
    length = tl.load(length_ptr + row)
    budget = tl.load(budget_ptr + row)
    stops = tl.load(stops_ptr + row * MAX_STOPS + tl.arange(0, MAX_STOPS))
    stop = tl.max((stops == token).to(tl.int32), 0)
    tl.store(tokens_ptr + row.to(tl.int64) * capacity + count, token)
    tl.store(log_probs_ptr + row.to(tl.int64) * capacity + count, log_prob)
    tl.store(token_ptr + row, token)
    tl.store(seen_ptr + row.to(tl.int64) * V + token, 1)
    tl.store(length_ptr + row, length + FED)
    tl.store(count_ptr + row, count + 1)
    tl.store(stopped_ptr + row, stop)
    tl.store(active_ptr + row, ((stop == 0) & (count + 1 < budget)).to(tl.int32))
    k = tl.arange(0, KP)
    embedding = tl.load(embedding_ptr + token.to(tl.int64) * K + k, mask=k < K, other=0.0).to(tl.float32)
    tl.store(x_ptr + lane * K + k, embedding, mask=k < K)
