"""Which pairs of ranks can be among a token's best experts."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def rank_pairs(keys: int, top_k: int, device: torch.device) -> Tensor:
    """The pairs of ranks with (a + 1)(b + 1) <= k, in the order that decides ties: [C, 2] of int32.

    A pair (a, b) of ranks is preceded by every pair (a', b') with a' <= a and b' <= b: its sum is at least as high
    (floating-point addition is monotone) and, where the sums tie, its keys are the better ones. There are
    (a + 1)(b + 1) - 1 such pairs beside itself, so the top k lie among these C, about k ln k.
    """
    ranks = range(min(keys, top_k))
    pairs = [(a, b) for a in ranks for b in range(min(keys, top_k // (a + 1)))]
    return torch.tensor(pairs, dtype=torch.int32, device=device)
