"""Retention horizons: until which position each key is seen.

A score never changes and a prefix only grows, so a key that has dropped out of the w highest never returns. The
T x T mask is therefore one integer per key: key j is seen by the queries i with j <= i < e_j.

All keys of a row are put in one order: by document, then by rounded score, then by position. With rank r_j in that
order and theta_i the w-th highest rank among the keys 0..i, key j is beaten by w keys exactly when theta_i > r_j, and
theta never falls. Later documents outrank earlier ones without harm: their keys come after the end of the earlier
ones, where the limit has already ended these. Padding (limit 0) ranks below everything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from small_doge.ops.dynamic_mask_attention.scores import ordered_score
from small_doge.ops.support import has_triton

SHORTEST_SEGMENT = 1 << 16
"""Keys that are sorted at once for however small a window."""
ONE_LAUNCH = 1 << 18
"""Keys up to which the pass of O(n sqrt n) is the faster one on an H100."""


def retention_horizon(score_BGS: Tensor, keep_window: int, limit_BS: Tensor | None = None) -> Tensor:
    """The horizon e_j of every key: it is seen by the queries i with j <= i < e_j, and by no other.

    e_j is the limit of the key or the position of the ``keep_window``-th key, in order of position, that beats it,
    whichever comes first. A key beats another of the same document (the same limit) if its rounded score is higher,
    or equal and it is newer. e_j <= j means no more than that the key is
    not even seen by its own query.

    Args:
        score_BGS: [B, G, S], any floating dtype; compared after `round_score`; no gradient flows.
        keep_window: w >= 1.
        limit_BS: [B, S] integer, the position after the last query that may see the key: the end of its document
            (documents are contiguous runs), or 0 for padding. S everywhere if left out.

    Returns:
        int32 [B, G, S]; [B, 1, S] if S <= w, where no key is ever beaten out and e_j is the limit.

    Work is O(S log w) for each key/value head, and memory O(S): one sort and one wavelet-matrix descent
    (`running_threshold`) a segment of max(4 w^2, 65,536) keys, between which only the w keys alive are handed on. On a
    GPU with Triton, up to `ONE_LAUNCH` keys at a time, a pass of O(n sqrt n) in a single launch stands for the descent.
    """
    if keep_window < 1:
        raise ValueError(f"keep_window must be at least 1, not {keep_window}")
    batch, _, keys = score_BGS.shape
    if keys <= keep_window:
        if limit_BS is not None:
            return limit_BS.to(torch.int32)[:, None, :]
        return torch.full((batch, 1, keys), keys, dtype=torch.int32, device=score_BGS.device)
    if limit_BS is None:
        limit_BS = torch.full((batch, keys), keys, dtype=torch.int32, device=score_BGS.device)
    return _horizon(score_BGS.detach(), limit_BS, keep_window)


@torch.library.custom_op("small_doge::retention_horizon", mutates_args=())
def _horizon(score_BGS: Tensor, limit_BS: Tensor, keep_window: int) -> Tensor:
    """One opaque operator, so that a compiled model neither breaks nor unrolls here."""
    order_RS = sort_key(score_BGS, limit_BS)
    whole = order_RS.shape[1] <= segment_length(keep_window)
    beaten_RS = beaten_by(order_RS, keep_window) if whole else beaten_by_segments(order_RS, keep_window)
    return torch.minimum(beaten_RS.view(score_BGS.shape), limit_BS[:, None, :]).to(torch.int32)


@_horizon.register_fake
def _(score_BGS: Tensor, limit_BS: Tensor, keep_window: int) -> Tensor:
    return score_BGS.new_empty(score_BGS.shape, dtype=torch.int32)


def segment_length(keep_window: int) -> int:
    """Keys sorted at once: so many that log2 of it is at most 2 log2 w + 2, or 16."""
    return max(4 * keep_window**2, SHORTEST_SEGMENT)


def sort_key(score_BGS: Tensor, limit_BS: Tensor) -> Tensor:
    """(row, limit, rounded score) of each key as one integer: int64 [B * G, S], positive."""
    batch, groups, keys = score_BGS.shape
    assert batch * groups < 2**15 and keys < 2**24, "the sort key holds 15 bits of row and 24 of limit"
    order = (limit_BS[:, None, :].to(torch.int64) << 24) | ordered_score(score_BGS).to(torch.int64)
    row = torch.arange(batch * groups, device=order.device)[:, None]
    return order.flatten(0, 1) | (row << 48)


def beaten_by(order_RC: Tensor, keep_window: int) -> Tensor:
    """The place of the w-th key, in order of place, that beats each, or C: int64 [R, C]."""
    rank_RC, by_rank_RC = rank_in_row(order_RC)
    if has_triton(order_RC) and order_RC.shape[1] <= ONE_LAUNCH:
        from small_doge.ops.dynamic_mask_attention.triton_retention import running_threshold_triton

        rank_RC = rank_RC.to(torch.int32)
        threshold_RC = running_threshold_triton(rank_RC, by_rank_RC.to(torch.int32), keep_window)
    else:
        threshold_RC = running_threshold(rank_RC, keep_window)
    return torch.searchsorted(threshold_RC, rank_RC, right=True)


def beaten_by_segments(order_RS: Tensor, keep_window: int) -> Tensor:
    """`beaten_by` a segment after another; for a key that its own query does not see, some place up to its own."""
    rows, keys = order_RS.shape
    beaten_RS = torch.full_like(order_RS, keys)
    alive_RC = order_RS.new_empty(rows, 0)
    segment = segment_length(keep_window)
    for start in range(0, keys, segment):
        # The w keys alive at the start of the segment, and its own: no other can be beaten, or beats.
        own = torch.arange(start, min(start + segment, keys), device=order_RS.device)
        place_RC = torch.cat([alive_RC, own.expand(rows, -1)], 1)
        beaten_RC = beaten_by(order_RS.gather(1, place_RC), keep_window)
        # A place among these stands for one in the row; behind the last is nobody yet.
        beaten_RS.scatter_(1, place_RC, F.pad(place_RC, (0, 1), value=keys).gather(1, beaten_RC))
        if start + segment < keys:
            alive_RC = place_RC[beaten_RC == place_RC.shape[1]].view(rows, keep_window)
    return beaten_RS


def rank_in_row(order_RC: Tensor) -> tuple[Tensor, Tensor]:
    """The rank of each key in its row, ascending, the earlier one lower where two are equal; and who has each rank.

    Both int64 [R, C], permutations of 0 .. C - 1. Every row of `order_RC` lies above the one before it.
    """
    rows, keys = order_RC.shape
    # One sort of all rows: a GPU sorts long rows one by one otherwise.
    first = torch.arange(rows, device=order_RC.device)[:, None] * keys
    by_rank_RC = order_RC.flatten().argsort(stable=True).view(rows, keys) - first
    place = torch.arange(keys, device=order_RC.device).expand_as(by_rank_RC)
    return torch.empty_like(by_rank_RC).scatter_(-1, by_rank_RC, place), by_rank_RC


def running_threshold(rank_RS: Tensor, keep_window: int) -> Tensor:
    """The w-th highest rank among the keys 0..i, for every i: int64 [R, S]; -1 while there are fewer than w.

    A wavelet-matrix descent of all prefixes at once: one level per bit of the rank, from the highest. Each level
    partitions the row stably by its bit; prefix counts of the ones tell each query which side holds its answer.
    """
    rows, keys = rank_RS.shape
    index = torch.arange(keys, device=rank_RS.device).expand(rows, keys)
    low, high = torch.zeros_like(index), index + 1
    needed = torch.full_like(index, keep_window)
    threshold = torch.zeros_like(index)
    level = rank_RS
    for bit in reversed(range(max(1, (keys - 1).bit_length()))):
        one = (level >> bit) & 1
        ones_before = F.pad(one.cumsum(-1), (1, 0))
        zeros = keys - ones_before[:, -1:]
        ones_low, ones_high = ones_before.gather(-1, low), ones_before.gather(-1, high)
        ones = ones_high - ones_low
        upper = ones >= needed
        threshold |= upper.to(torch.int64) << bit
        needed = torch.where(upper, needed, needed - ones)
        low = torch.where(upper, zeros + ones_low, low - ones_low)
        high = torch.where(upper, zeros + ones_high, high - ones_high)
        ones_before = ones_before[:, :-1]
        target = torch.where(one == 1, zeros + ones_before, index - ones_before)
        level = torch.empty_like(level).scatter_(-1, target, level)
    return threshold.masked_fill_(index + 1 < keep_window, -1)
