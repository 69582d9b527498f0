"""Product keys: the best of n * n experts from two lists of n scores, without forming the n * n sums.

Sort each half; only about k ln k pairs of ranks can be among the best k (`candidates`); take the best of their sums.
Exact, ties included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from small_doge.ops.expert_retrieval.candidates import rank_pairs
from small_doge.ops.support import has_triton

KERNEL_KEYS, KERNEL_TOP_K = 128, 32
"""The most keys of a half and experts a token that the kernel sorts in registers. Beyond, torch sorts, and on a GPU its
gradients are added in any order unless it is told to be deterministic."""


def search_experts(scores_2Nn: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` experts of each token by the sum of their two keys' scores; equal to `naive.naive_search`.

    Args:
        scores_2Nn: the scores of the first keys and of the second keys; any floating dtype. On a GPU with Triton those
            in fp32 are searched by one kernel.
        top_k: k, at most n * n.

    Returns:
        Scores [N, k], the highest first, with gradients to the keys that won, and the experts' indices [N, k]; expert
        i * n + j stands for the keys i and j. Work is O(n log n + k log^2 k) a token; the kernel, which
        compares in fixed pairs, takes a logarithm more.

    Raises:
        ValueError: more experts asked for than there are.
    """
    keys = scores_2Nn.shape[-1]
    if not 1 <= top_k <= keys * keys:
        raise ValueError(f"top_k is {top_k}: choose between 1 and the number of experts, {keys * keys}.")
    if has_triton(scores_2Nn) and scores_2Nn.dtype == torch.float32 and keys <= KERNEL_KEYS and top_k <= KERNEL_TOP_K:
        from small_doge.ops.expert_retrieval.triton_search import triton_search

        return triton_search(scores_2Nn, top_k)
    with torch.no_grad():
        score, key = scores_2Nn.sort(dim=-1, descending=True, stable=True)
        a, b = _candidates(keys, top_k, scores_2Nn.device)
        sums = score[0][:, a] + score[1][:, b]
        best = sums.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
        first, second = key[0].gather(1, a[best]), key[1].gather(1, b[best])
    return scores_2Nn[0].gather(1, first) + scores_2Nn[1].gather(1, second), first * keys + second


# Constant while torch.compile traces: it would warn that it looks through the cache.
@torch.compiler.assume_constant_result
def _candidates(keys: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    pairs = rank_pairs(keys, top_k, device).long()
    return pairs[:, 0], pairs[:, 1]
