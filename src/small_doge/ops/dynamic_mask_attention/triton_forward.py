"""The forward kernel: flash attention with a score per key, over all keys up to the query's or over a list of them.

A *row* is one query of one head. The R query heads of a key/value head are interleaved (row = token * R + head), so
that they share every load of a key. Tokens go by in *spans*: one span of all T tokens where every key up to the query
is looked at, spans of C tokens with a list of keys each where only w keys matter (LISTED). With MASKED, each entry has
an end (its horizon), and `reach` holds the highest end of every `GRANULE` entries, to start beyond what is over.
Logits are kept in base 2.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

GRANULE = 64
"""Entries whose highest end `reach` keeps."""

LENGTHS = ("queries", "keys", "span", "spans", "granules", "chunks", "bins", "keep_window")
"""Arguments that change from call to call: a kernel is not compiled again for them."""

LOG2E = tl.constexpr(1.4426950408889634)


class Tiles(NamedTuple):
    """The shape of one kernel's work: rows and keys of a tile, warps, software-pipelining stages."""

    rows: int
    keys: int
    warps: int
    stages: int


def strides(*tensors: Tensor) -> list[int]:
    """Of batch, head and position: what a kernel is told of how each tensor lies."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def granules(reach: Tensor | None) -> dict[str, int]:
    """What a kernel is told of `reach`."""
    count = 0 if reach is None else reach.shape[-1]
    return {"granules": count, "GRANULES": triton.next_power_of_2(max(count, 1)), "GRANULE_SIZE": GRANULE}


@triton.jit
def heaviest_first(count, TOGETHER: tl.constexpr):
    """Which of `count` pieces of work, from the heaviest down, and of which key/value head this program does.

    TOGETHER heads go by side by side: all their heaviest pieces, then the next, so that the last programs are short.
    """
    first = tl.program_id(0) // (count * TOGETHER) * TOGETHER
    beside = tl.minimum(TOGETHER, tl.num_programs(0) // count - first)
    place = tl.program_id(0) - first * count
    return place // beside, first + place % beside


@triton.jit
def load_rows(pointer, row, stride, present, D: tl.constexpr, DP: tl.constexpr, BOUND: tl.constexpr):
    """[rows, DP] out of a tensor whose last dimension is contiguous; 0 where a row is not present, and beyond D."""
    d = tl.arange(0, DP)
    pointers = pointer + row[:, None] * stride + d[None, :]
    if BOUND:
        if D == DP:
            tile = tl.load(pointers, mask=present[:, None], other=0.0)
        else:
            tile = tl.load(pointers, mask=present[:, None] & (d < D)[None, :], other=0.0)
    else:
        if D == DP:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=(d < D)[None, :], other=0.0)
    return tile


@triton.jit
def first_alive(reach_ptr, granules, position, GRANULES: tl.constexpr, GRANULE_SIZE: tl.constexpr, BN: tl.constexpr):
    """The first entry, in steps of BN, of the first granule that some query from this position on can see."""
    g = tl.arange(0, GRANULES)
    reach = tl.load(reach_ptr + g, mask=g < granules, other=0)
    first = tl.min(tl.where(reach > position, g, GRANULES), 0)
    return first * GRANULE_SIZE // BN * BN


@triton.jit
def _attend(
    weighted,
    total,
    top,
    query,
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
    """One online softmax over the entries start .. stop; CAUSAL where some of them are later than some query."""
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
        if CAUSAL:
            score = tl.load(score_ptr + key_at * score_s, mask=present, other=0.0)
        else:
            score = tl.load(score_ptr + key_at * score_s)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale + (score * LOG2E)[None, :]
        if MASKED:
            if CAUSAL:
                end = tl.load(end_ptr + entry, mask=present, other=0)
            else:
                end = tl.load(end_ptr + entry)
            logits = tl.where(position[:, None] < end[None, :], logits, float("-inf"))
        if CAUSAL:
            logits = tl.where(position[:, None] >= key_at[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, 1)
        value = load_rows(v_ptr, key_at, v_s, present, D, DP, CAUSAL and not LISTED)
        weighted = weighted * fade[:, None]
        weighted = tl.dot(weights.to(value.dtype), value, weighted, input_precision=PRECISION)
        top = new_top
    return weighted, total, top


@triton.jit(do_not_specialize=LENGTHS)
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    score_ptr,
    end_ptr,
    reach_ptr,
    index_ptr,
    seen_ptr,
    out_ptr,
    lse_ptr,
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
    """One program: BM rows of one key/value head. `scale` is in base 2; so is the log-sum-exp it writes."""
    tiles = tl.cdiv(span * R, BM)
    # The last rows look at the most keys.
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
    q_ptr += b64 * q_b
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

    d = tl.arange(0, DP)
    q_at = head * q_h + token * q_t
    query = load_rows(q_ptr, q_at, 1, present, D, DP, True)
    weighted = tl.zeros([BM, DP], dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    # Finite, so that a row which has seen nothing yet never computes inf - inf.
    top = tl.full([BM], -1.0e30, dtype=tl.float32)
    weighted, total, top = _attend(
        weighted, total, top, query, position, k_ptr, v_ptr, score_ptr, end_ptr, index_ptr, k_s, v_s, score_s, scale,
        start, causal_from, D, DP, BN, MASKED, LISTED, False, PRECISION,
    )  # fmt: skip
    weighted, total, top = _attend(
        weighted, total, top, query, position, k_ptr, v_ptr, score_ptr, end_ptr, index_ptr, k_s, v_s, score_s, scale,
        tl.maximum(start, causal_from), stop, D, DP, BN, MASKED, LISTED, True, PRECISION,
    )  # fmt: skip
    seen = total > 0.0
    weighted = weighted / tl.where(seen, total, 1.0)[:, None]
    # +inf where nothing was seen: the backward weights exp2(logit - inf) are then 0.
    lse = tl.where(seen, top + tl.log2(total), float("inf"))
    out_at = out_ptr + b64 * out_b + (head * out_h + token * out_t)[:, None] + d[None, :]
    tl.store(out_at, weighted.to(out_ptr.dtype.element_ty), mask=present[:, None] & (d < D)[None, :])
    tl.store(lse_ptr + (b64 * groups * R + head) * queries + token, lse, mask=present)
