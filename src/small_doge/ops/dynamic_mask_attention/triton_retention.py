"""The running threshold on a GPU: the w-th highest rank of every prefix, in one launch after the sort.

Ranks are a permutation of 0 .. S - 1. Cut them into bins of about sqrt(S) ranks and positions into chunks: a table
counts, for each chunk's start, the earlier keys in each bin and above. The bin of a prefix's threshold follows from
the table and the chunk's own keys; the threshold itself from the positions of that bin's keys, since the ranks of a bin
are known without looking. O(S sqrt S) work, all of it regular.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.dynamic_mask_attention.triton_forward import LENGTHS

CHUNK = 32
"""Positions of one program."""


def running_threshold_triton(rank_RS: Tensor, position_RS: Tensor, keep_window: int) -> Tensor:
    """`retention.running_threshold` on a GPU; ``position_RS`` is the inverse permutation of ``rank_RS``, both int32."""
    rows, keys = rank_RS.shape
    width = max(256, triton.next_power_of_2(int(keys**0.5)))
    chunks, bins = triton.cdiv(keys, CHUNK), triton.cdiv(keys, width)
    cell = torch.arange(keys, device=rank_RS.device) // CHUNK * bins + rank_RS // width
    table = torch.zeros(rows, chunks * bins, dtype=torch.int32, device=rank_RS.device)
    table.scatter_add_(1, cell, torch.ones_like(rank_RS))
    # above[c, b]: keys before chunk c in bin b or a higher one.
    table = table.view(rows, chunks, bins)
    above = (table.cumsum(1, dtype=torch.int32) - table).flip(-1).cumsum(-1, dtype=torch.int32).flip(-1).contiguous()
    threshold = torch.empty_like(rank_RS)
    with torch.cuda.device_of(rank_RS):
        _threshold_kernel[(chunks, rows)](
            rank_RS, position_RS, above, threshold, keys, chunks, bins, keep_window, BIN=width, CHUNK=CHUNK, BINS=128
        )
    return threshold


@triton.jit(do_not_specialize=LENGTHS)
def _threshold_kernel(
    rank_ptr,
    position_ptr,
    above_ptr,
    threshold_ptr,
    keys,
    chunks,
    bins,
    keep_window,
    BIN: tl.constexpr,
    CHUNK: tl.constexpr,
    BINS: tl.constexpr,
):
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    i = chunk * CHUNK + tl.arange(0, CHUNK)
    present = i < keys
    bin_of = tl.load(rank_ptr + row * keys + i, mask=present, other=-1) // BIN
    bin_of = tl.where(present, bin_of, -1)
    earlier = (i[:, None] >= i[None, :]).to(tl.float16)
    # The highest bin from which on a prefix holds w keys, and how many it holds above that bin.
    found = tl.zeros([CHUNK], dtype=tl.int32)
    beyond = tl.zeros([CHUNK], dtype=tl.int32)
    for at in range(0, bins, BINS):
        b = at + tl.arange(0, BINS)
        own = (bin_of[:, None] >= b[None, :]).to(tl.float16)
        before = tl.load(above_ptr + (row * chunks + chunk) * bins + b, mask=b < bins, other=0)
        held = before[None, :] + tl.dot(earlier, own).to(tl.int32)
        enough = (held >= keep_window) & (b < bins)[None, :]
        found += tl.sum(enough.to(tl.int32), 1)
        beyond = tl.maximum(beyond, tl.max(tl.where(enough | (b >= bins)[None, :], 0, held), 1))
    needed = keep_window - beyond
    base = tl.maximum(found - 1, 0) * BIN
    u = tl.arange(0, BIN)
    rank = base[:, None] + u[None, :]
    position = tl.load(position_ptr + row * keys + rank, mask=rank < keys, other=keys)
    higher = tl.cumsum((position <= i[:, None]).to(tl.int32), 1, reverse=True)
    within = tl.sum((higher >= needed[:, None]).to(tl.int32), 1) - 1
    threshold = tl.where(found > 0, base + within, -1)
    tl.store(threshold_ptr + row * keys + i, threshold, mask=present)
