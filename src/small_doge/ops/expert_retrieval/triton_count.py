"""How often each expert was chosen: a histogram a program, and their sum; `scatter_add_` queues at few addresses."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.support import traceable

CHOICES = 8192
"""Of a program of eight warps, which counts in shared memory."""


@triton.jit
def count_kernel(
    index_ptr, valid_ptr, part_ptr, choices, k, EP: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counted = at < choices
    expert = tl.load(index_ptr + at, mask=counted, other=0).to(tl.int32)
    if MASKED:
        counted &= tl.load(valid_ptr + at // k, mask=counted, other=0) != 0
    bins = tl.arange(0, EP)
    tl.store(part_ptr + tl.program_id(0) * EP + bins, tl.histogram(expert, EP, mask=counted))


@torch.library.triton_op("small_doge::count_experts", mutates_args=())
def triton_count(index_Nk: Tensor, experts: int, valid_N: Tensor | None) -> Tensor:
    """The choices of each of so many experts by the tokens that are valid: [E] of int64."""
    index_Nk = index_Nk.contiguous()
    padded = max(256, triton.next_power_of_2(experts))
    parts = index_Nk.new_empty(triton.cdiv(index_Nk.numel(), CHOICES), padded, dtype=torch.int32)
    with torch.cuda.device_of(index_Nk):
        traceable(count_kernel)[(parts.shape[0],)](
            index_Nk,
            None if valid_N is None else valid_N.to(torch.int8),
            parts,
            index_Nk.numel(),
            index_Nk.shape[1],
            EP=padded,
            BLOCK=CHOICES,
            MASKED=valid_N is not None,
            num_warps=8,
        )
    return parts[:, :experts].sum(0)
