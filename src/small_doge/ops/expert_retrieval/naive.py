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


def naive_hidden(joint_NF: Tensor, scores_Nk: Tensor, index_Nk: Tensor, experts: int) -> Tensor:
    """The hidden features of a gated unit and of a mixture beside it: [N, f + E] from [N, 2f + E].

    The first f are silu(gate) * up; expert e has w_e * silu(x . down_e) where the token chose it, else zero.

    Args:
        joint_NF: gate, up and the dot products with all experts, side by side.
        scores_Nk: the chosen experts' scores; w is their softmax.
        index_Nk: the chosen experts, distinct.
        experts: E.
    """
    width = (joint_NF.shape[1] - experts) // 2
    gate, up, dots_NE = joint_NF.split([width, width, experts], 1)
    silu = torch.nn.functional.silu
    chosen_Nk = scores_Nk.softmax(-1) * silu(dots_NE.gather(1, index_Nk))
    spread_NE = torch.zeros_like(dots_NE).scatter(1, index_Nk, chosen_Nk.to(dots_NE.dtype))
    return torch.cat([silu(gate) * up, spread_NE], 1)
