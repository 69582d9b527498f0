"""The forward for one span without lists and S = T, in half precision, on a GPU with a TMA (Hopper).

A tile of rows is of one head, and looks at its keys from the diagonal down. Tiles of queries, keys, scores, values and
outputs go by the TMA. Each product is waited for: two programs share a multiprocessor, and one multiplies under the
other's softmax.

Words as in `triton_forward`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from small_doge.ops.dynamic_mask_attention.triton_forward import (
    LENGTHS,
    LOG2E,
    Tiles,
    first_alive,
    granules,
    heaviest_first,
)


@triton.jit(do_not_specialize=LENGTHS)
def tma_forward_kernel(
    q_desc,
    k_desc,
    v_desc,
    score_desc,
    end_ptr,
    reach_ptr,
    out_desc,
    lse_ptr,
    groups,
    end_groups,
    queries,
    room,
    granules,
    scale,
    R: tl.constexpr,
    DP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GRANULES: tl.constexpr,
    GRANULE_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """One program: BM queries of one head. `scale` and scores are in base 2; so is the log-sum-exp it writes."""
    tiles = tl.cdiv(queries, BM)
    place, bg = heaviest_first(tiles * R, TOGETHER)
    # The last rows look at the most keys.
    first = (tiles - 1 - place // R) * BM
    b = bg // groups
    g = bg - b * groups
    head = g * R + place % R
    position = first + tl.arange(0, BM)
    start = 0
    if MASKED:
        entries = b * end_groups + g % end_groups
        end_ptr += entries * room
        start = first_alive(reach_ptr + entries * granules, granules, first, GRANULES, GRANULE_SIZE, BN)
    last = (tl.minimum(first + BM, queries) - 1) // BN * BN
    blocks = tl.maximum(0, (last - start) // BN + 1)

    query = q_desc.load([b, head, first, 0]).reshape(BM, DP)
    weighted = tl.zeros([BM, DP], dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    # Finite, so that a row which has seen nothing yet never computes inf - inf.
    top = tl.full([BM], -1.0e30, dtype=tl.float32)
    for turn in range(0, blocks):
        at = last - turn * BN
        key_at = at + tl.arange(0, BN)
        key = k_desc.load([b, g, at, 0]).reshape(BN, DP)
        score = score_desc.load([bg, at]).reshape(BN)
        logits = tl.dot(query, tl.trans(key)) * scale + score[None, :]
        if MASKED:
            end = tl.load(end_ptr + key_at)
            logits = tl.where(position[:, None] < end[None, :], logits, float("-inf"))
        # Some keys are later than some query.
        if at + BN > first:
            logits = tl.where(position[:, None] >= key_at[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits - new_top[:, None])
        fade = tl.exp2(top - new_top)
        value = v_desc.load([b, g, at, 0]).reshape(BN, DP)
        weighted = weighted * fade[:, None]
        weighted = tl.dot(weights.to(value.dtype), value, weighted)
        total = total * fade + tl.sum(weights, 1)
        top = new_top
    seen = total > 0.0
    weighted = weighted / tl.where(seen, total, 1.0)[:, None]
    # +inf where nothing was seen: the backward weights exp2(logit - inf) are then 0.
    lse = tl.where(seen, top + tl.log2(total), float("inf"))
    out_desc.store([b, head, first, 0], weighted.to(out_desc.dtype).reshape(1, 1, BM, DP))
    lse_ptr += (bg.to(tl.int64) * R + place % R) * queries
    tl.store(lse_ptr + position, lse, mask=position < queries)


def tma_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    end: Tensor | None,
    reach: Tensor | None,
    *,
    scale: float,
    tiles: Tiles,
    together: int,
) -> tuple[Tensor, Tensor]:
    """The outputs, as the queries lie in memory, and their log-sum-exp in base 2, [B, H, T].

    ``together`` key/value heads have their programs side by side (`heaviest_first`).
    """
    batch, heads, queries, head_size = query.shape
    groups = key.shape[1]
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    row_tile = [1, 1, tiles.rows, max(16, triton.next_power_of_2(head_size))]
    key_tile = [1, 1, tiles.keys, row_tile[-1]]
    scores = padded_scores(score, tiles.keys)
    room = scores.shape[-1]
    if end is not None and room > queries:
        end = pad(end, (0, room - queries))
    tma_forward_kernel[(triton.cdiv(queries, tiles.rows) * batch * heads,)](
        TensorDescriptor.from_tensor(fit(query), row_tile),
        TensorDescriptor.from_tensor(fit(key), key_tile),
        TensorDescriptor.from_tensor(fit(value), key_tile),
        TensorDescriptor.from_tensor(scores.view(-1, room), [1, tiles.keys]),
        end,
        reach,
        TensorDescriptor.from_tensor(out, row_tile),
        lse,
        groups=groups,
        end_groups=1 if end is None else end.shape[1],
        queries=queries,
        room=room,
        scale=scale * LOG2E.value,
        R=heads // groups,
        DP=row_tile[-1],
        BM=tiles.rows,
        BN=tiles.keys,
        **granules(reach),
        MASKED=end is not None,
        TOGETHER=together,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out, lse


def padded_scores(score: Tensor, block: int) -> Tensor:
    """[B, G, S] in base 2, with room for whole blocks: what nobody wrote there is later than every query."""
    keys = score.shape[-1]
    scores = torch.empty(*score.shape[:2], triton.cdiv(keys, block) * block, dtype=torch.float32, device=score.device)
    torch.mul(score, LOG2E.value, out=scores[..., :keys])
    return scores


def fit(x: Tensor) -> Tensor:
    """As the TMA can read it: its last dimension contiguous, the rest in steps of 16 bytes."""
    steps = [x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:3])]
    return x if all(steps) and not any(step % 16 for step in steps) else x.contiguous()
