"""Index lists: for each span of C queries, the keys that any of them can see.

These are the keys alive at the span's start (at most w) and, of the span's own, those that their own query sees.
Entries are in order of position. For the backward pass each (span, key) pair has a slot, a key's slots side by side in
the order of the spans.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.dynamic_mask_attention.triton_forward import GRANULE, LENGTHS

LIST_MULTIPLE = 128
"""A list's room is a multiple of this, so that every tile of entries stays inside it."""


class IndexLists(NamedTuple):
    """What the kernels read. R is B * G rows, N spans, L entries of room."""

    end_RNL: Tensor
    """The horizon of each entry's key; 0 in room that no entry takes."""
    reach_RNP: Tensor
    """The highest end of each `GRANULE` entries."""
    index_RNL: Tensor
    """Position of each entry's key, ascending."""
    seen_RT: Tensor
    """How many entries of its span's list stand at or before each query."""
    slot_RNL: Tensor
    """Where its part of the gradient goes."""
    slot0_RS: Tensor
    """A key's first slot."""
    count_RS: Tensor
    """A key's number of slots."""


@torch.library.custom_op("small_doge::index_lists", mutates_args=())
def _build(
    horizon_BGS: Tensor, queries: int, keep_window: int, span: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    end_RS = horizon_BGS.flatten(0, 1).contiguous()
    rows, keys = end_RS.shape
    first = keys - queries
    spans, length = triton.cdiv(queries, span), list_length(keep_window, span)
    token = torch.arange(keys, device=end_RS.device, dtype=torch.int32) - first
    born = token.clamp(min=0)
    dead = end_RS.clamp(max=keys) - first
    count_RS = torch.where(dead > born, (dead - 1).div(span, rounding_mode="floor") - born // span + 1, 0)
    slot0_RS = count_RS.cumsum(-1, dtype=torch.int32) - count_RS
    index = end_RS.new_empty(rows, spans, length)
    # 0 is before every query: room that no entry takes is never seen.
    end, slot = torch.zeros_like(index), torch.empty_like(index)
    seen = end_RS.new_empty(rows, queries)
    with torch.cuda.device_of(end_RS):
        _list_kernel[(spans, rows)](
            end_RS, slot0_RS, index, end, slot, seen, queries, keys, span, spans, length, BLOCK=1024
        )
    reach = end.view(rows, spans, length // GRANULE, GRANULE).amax(-1)
    return end, reach, index, seen, slot, slot0_RS, count_RS.to(torch.int32)


@_build.register_fake
def _(
    horizon_BGS: Tensor, queries: int, keep_window: int, span: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, keys = horizon_BGS.shape[0] * horizon_BGS.shape[1], horizon_BGS.shape[2]
    spans, length = -(-queries // span), list_length(keep_window, span)
    entries = [horizon_BGS.new_empty(rows, spans, length) for _ in range(3)]
    reach = horizon_BGS.new_empty(rows, spans, length // GRANULE)
    seen = horizon_BGS.new_empty(rows, queries)
    slot0, count = horizon_BGS.new_empty(rows, keys), horizon_BGS.new_empty(rows, keys)
    return entries[0], reach, entries[1], seen, entries[2], slot0, count


def index_lists(horizon_BGS: Tensor, queries: int, keep_window: int, span: int) -> IndexLists:
    """The lists of every span of ``span`` queries. ``horizon_BGS`` is int32, for every key/value head."""
    return IndexLists(*_build(horizon_BGS, queries, keep_window, span))


def list_length(keep_window: int, span: int) -> int:
    """Room for the w keys alive at a span's start and the span's own."""
    return triton.cdiv(keep_window + span, LIST_MULTIPLE) * LIST_MULTIPLE


def reach_of(horizon_BGS: Tensor) -> Tensor:
    """The highest horizon of each `GRANULE` keys: [B * G, S / GRANULE], rounded up."""
    keys = horizon_BGS.shape[-1]
    return F.pad(horizon_BGS, (0, -keys % GRANULE)).flatten(0, 1).unflatten(-1, (-1, GRANULE)).amax(-1)


@triton.jit(do_not_specialize=LENGTHS)
def _list_kernel(
    end_ptr,
    slot0_ptr,
    index_ptr,
    list_end_ptr,
    slot_ptr,
    seen_ptr,
    queries,
    keys,
    span,
    spans,
    length,
    BLOCK: tl.constexpr,
):
    """One program: the list of one span of one key/value head, in order of position."""
    # The last spans have the most keys before them.
    c = tl.num_programs(0) - 1 - tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    first = keys - queries
    start = first + c * span
    stop = tl.minimum(start + span, keys)
    end_ptr += row * keys
    slot0_ptr += row * keys
    entries = (row * spans + c) * length
    filled = 0
    for at in range(0, stop, BLOCK):
        key_at = at + tl.arange(0, BLOCK)
        present = key_at < stop
        end = tl.load(end_ptr + key_at, mask=present, other=0)
        listed = present & (end > tl.maximum(key_at, start))
        count = tl.cumsum(listed.to(tl.int32), 0)
        place = entries + filled + count - 1
        slot0 = tl.load(slot0_ptr + key_at, mask=listed, other=0)
        born = tl.maximum(key_at - first, 0) // span
        tl.store(index_ptr + place, key_at, mask=listed)
        tl.store(list_end_ptr + place, end, mask=listed)
        tl.store(slot_ptr + place, slot0 + c - born, mask=listed)
        own = present & (key_at >= start)
        tl.store(seen_ptr + row * queries + key_at - first, filled + count, mask=own)
        filled += tl.sum(listed.to(tl.int32), 0)
