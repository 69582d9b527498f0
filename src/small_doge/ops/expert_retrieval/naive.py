"""The definition of expert retrieval: every sum formed, every embedding gathered, written to be read.

Names carry shapes: N tokens, n keys of one half, E = n * n experts, k experts a token, d width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def naive_search(scores_2Nn: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` experts of each token by the sum of their two keys' scores, from all n * n sums.

    Expert i * n + j has the score first_i + second_j. Where two sums are equal, the expert with the better first key
    comes first, then the one with the better second key; of two keys of equal score the lower index is the better.

    Args:
        scores_2Nn: the scores of the first keys and of the second keys.
        top_k: k, at most n * n.

    Returns:
        Scores [N, k], the highest first, and the experts' indices [N, k].
    """
    score, key = scores_2Nn.sort(dim=-1, descending=True, stable=True)
    sums = (score[0][:, :, None] + score[1][:, None, :]).flatten(1)
    experts = (key[0][:, :, None] * scores_2Nn.shape[-1] + key[1][:, None, :]).flatten(1)
    order = sums.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    return sums.gather(1, order), experts.gather(1, order)


def naive_mixture(
    x_Nd: Tensor,
    index_Nk: Tensor,
    weight_Nk: Tensor,
    down_Ed: Tensor,
    up_Ed: Tensor,
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.silu,
) -> Tensor:
    """sum over the token's experts e of weight_e * activation(x . down_e) * up_e: [N, d].

    Source: Wonderful Matrices (arXiv 2412.11834, cross domain mixture of experts). Memory is O(N * k * d).
    """
    hidden_Nk = (x_Nd[:, None, :] * down_Ed[index_Nk]).sum(-1)
    return ((weight_Nk * activation(hidden_Nk))[..., None] * up_Ed[index_Nk]).sum(1)
