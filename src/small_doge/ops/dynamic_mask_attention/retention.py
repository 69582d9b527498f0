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


def retention_horizon(score_BGS: Tensor, keep_window: int, limit_BS: Tensor | None = None) -> Tensor:
    """The horizon e_j of every key: it is seen by the queries i with j <= i < e_j, and by no other.

    e_j is the limit of the key or the position of the ``keep_window``-th key, in order of position, that beats it,
    whichever comes first. A key beats another of the same document (the same limit) if its rounded score is higher,
    or equal and it is newer. e_j <= j means that the key is not even seen by its own query.

    Args:
        score_BGS: [B, G, S], any floating dtype; compared after `round_score`; no gradient flows.
        keep_window: w >= 1.
        limit_BS: [B, S] integer, the position after the last query that may see the key: the end of its document
            (documents are contiguous runs), or 0 for padding. S everywhere if left out.

    Returns:
        int32 [B, G, S]; [B, 1, S] if S <= w, where no key is ever beaten out and e_j is the limit.

    Work is O(S log S) for each key/value head: one sort and one wavelet-matrix descent (`running_threshold`), or, on
    a GPU with Triton, one sort and one pass of O(S sqrt S) in a single launch. Up to S = 4 w^2 (16.8 M keys for
    w = 2,048) log S is at most 2 log w + 2, so that is O(S log w); by blocks of 2w keys, one after another, it would be
    so for every S, and be more work up to there.
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
    batch, groups, keys = score_BGS.shape
    rank_RS, position_RS = rank_in_row(score_BGS, limit_BS)
    if has_triton(score_BGS):
        from small_doge.ops.dynamic_mask_attention.triton_retention import running_threshold_triton

        rank_RS = rank_RS.to(torch.int32)
        threshold_RS = running_threshold_triton(rank_RS, position_RS.to(torch.int32), keep_window)
    else:
        threshold_RS = running_threshold(rank_RS, keep_window)
    beaten_RS = torch.searchsorted(threshold_RS, rank_RS, right=True)
    return torch.minimum(beaten_RS.view(batch, groups, keys), limit_BS[:, None, :]).to(torch.int32)


@_horizon.register_fake
def _(score_BGS: Tensor, limit_BS: Tensor, keep_window: int) -> Tensor:
    return score_BGS.new_empty(score_BGS.shape, dtype=torch.int32)


def rank_in_row(score_BGS: Tensor, limit_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The rank of each key in its row by (limit, rounded score, position), ascending, and the position of each rank.

    Both int64 [B * G, S], permutations of 0 .. S - 1.
    """
    batch, groups, keys = score_BGS.shape
    order = (limit_BS[:, None, :].to(torch.int64) << 24) | ordered_score(score_BGS).to(torch.int64)
    # One sort of all rows, the row in the highest bits: a GPU sorts long rows one by one otherwise.
    assert batch * groups < 2**15 and keys < 2**24, "the sort key holds 15 bits of row and 24 of limit"
    row = torch.arange(batch * groups, device=order.device)[:, None]
    order = order.flatten(0, 1) | (row << 48)
    first = row * keys
    by_rank = order.flatten().argsort(stable=True).view(batch * groups, keys) - first
    position = torch.arange(keys, device=order.device).expand_as(by_rank)
    return torch.empty_like(by_rank).scatter_(-1, by_rank, position), by_rank


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
