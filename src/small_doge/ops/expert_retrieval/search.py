"""Product keys: the best of n * n experts from two lists of n scores, without forming the n * n sums.

Sort each half. A pair of ranks (a, b) is preceded by every pair (a', b') with a' <= a and b' <= b: its sum is at least
as high (floating-point addition is monotone) and, where the sums tie, its keys are the better ones. There are
(a + 1)(b + 1) - 1 such pairs beside itself, so the top k lie among the pairs with (a + 1)(b + 1) <= k: about k ln k
candidates instead of n * n, and exact, ties included.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def search_experts(scores_2Nn: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` experts of each token by the sum of their two keys' scores; equal to `naive.naive_search`.

    Args:
        scores_2Nn: the scores of the first keys and of the second keys; any floating dtype.
        top_k: k, at most n * n.

    Returns:
        Scores [N, k], the highest first, with gradients to the keys that won, and the experts' indices [N, k]; expert
        i * n + j stands for the keys i and j. Work is O(n log n + k log^2 k) a token.

    Raises:
        ValueError: more experts asked for than there are.
    """
    keys = scores_2Nn.shape[-1]
    if not 1 <= top_k <= keys * keys:
        raise ValueError(f"top_k is {top_k}: choose between 1 and the number of experts, {keys * keys}.")
    with torch.no_grad():
        score, key = scores_2Nn.sort(dim=-1, descending=True, stable=True)
        a, b = _candidates(min(keys, top_k), top_k, scores_2Nn.device)
        sums = score[0][:, a] + score[1][:, b]
        best = sums.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
        first, second = key[0].gather(1, a[best]), key[1].gather(1, b[best])
    return scores_2Nn[0].gather(1, first) + scores_2Nn[1].gather(1, second), first * keys + second


# Constant while torch.compile traces: it would warn that it looks through the cache.
@torch.compiler.assume_constant_result
def _candidates(keys: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return _ranks(keys, top_k, device)


@lru_cache(maxsize=16)
def _ranks(keys: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rank pairs that can be among the top k, in the order that decides ties."""
    pairs = [(a, b) for a in range(keys) for b in range(min(keys, top_k // (a + 1)))]
    ranks = torch.tensor(pairs, device=device)
    return ranks[:, 0], ranks[:, 1]
