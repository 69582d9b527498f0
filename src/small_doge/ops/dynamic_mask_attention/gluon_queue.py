"""What the kernels in Gluon share: their queues of tiles, and how tensors are described to the TMA.

As many programs run as the GPU has multiprocessors, and each goes through a list of tiles, so that one tile's loads
run under the end of the one before. The lists are those that a queue would give whose next tile, the heaviest of those
left, goes to the program that is free first.
"""

import heapq
from functools import cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from small_doge.ops.dynamic_mask_attention.triton_tma_forward import fit

ELEMENT = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}

NO_MORE = -1
BETWEEN = 1.0
"""What it takes to begin and end a tile, in blocks that it looks at."""


def hand_out(rows: int, tiles: int, together: int, programs: int, *, last_heaviest: bool) -> list[list[int]]:
    """The tiles of each program, row * tiles + tile.

    Every row has `tiles` of them, of 1 to `tiles` blocks: the last the most, or the first. ``together`` rows go side by
    side, all their heaviest tiles first: what they read then fits the L2 cache.
    """
    free = [(0.0, program) for program in range(programs)]
    lists: list[list[int]] = [[] for _ in range(programs)]
    for start in range(0, rows, together):
        for blocks in range(tiles, 0, -1):
            tile = blocks - 1 if last_heaviest else tiles - blocks
            for row in range(start, min(start + together, rows)):
                at, program = heapq.heappop(free)
                lists[program].append(row * tiles + tile)
                heapq.heappush(free, (at + blocks + BETWEEN, program))
    return lists


@cache
def queue(rows: int, tiles: int, together: int, device: torch.device, *, last_heaviest: bool) -> Tensor:
    """`hand_out` for a GPU, int32 [turns, programs], each list ended by `NO_MORE`. Kept: a CUDA graph may read it."""
    programs = torch.cuda.get_device_properties(device).multi_processor_count
    lists = hand_out(rows, tiles, together, programs, last_heaviest=last_heaviest)
    turns = max(map(len, lists)) + 1
    padded = [tiles_of + [NO_MORE] * (turns - len(tiles_of)) for tiles_of in lists]
    return torch.tensor(padded, dtype=torch.int32).T.contiguous().to(device)


@gluon.jit
def take(queue_ptr, turn):
    """This program's tile of that turn; negative when there is none left."""
    return gl.load(queue_ptr + turn * gl.num_programs(0) + gl.program_id(0))


def described(x: Tensor, rows: int) -> TensorDescriptor:
    """For the TMA: tiles of `rows` of the last dimension but one, whole in the last, or `rows` numbers of a vector."""
    x = fit(x) if x.dim() == 4 else x
    tile = [rows] if x.dim() == 1 else [1] * (x.dim() - 2) + [rows, x.shape[-1]]
    return TensorDescriptor.from_tensor(x, tile, gl.NVMMASharedLayout.get_default_for(tile, ELEMENT[x.dtype]))
