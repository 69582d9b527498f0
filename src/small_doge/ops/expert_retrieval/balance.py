"""Keeping the experts of a mixture busy, and seeing whether they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from small_doge.ops.expert_retrieval.search import search_experts
from small_doge.ops.support import has_triton

KERNEL_EXPERTS = 4096
"""The most experts that the kernel counts in shared memory; beyond, and on a CPU, torch adds."""


def balance_loss(scores_2Nn: Tensor, index_Nk: Tensor, valid_N: Tensor | None = None) -> Tensor:
    """E * sum over the experts of (share of the choices that are e) * (mean probability of e): 1 when all are equal.

    The loss of the Switch Transformer (arXiv 2101.03961, equations 4 to 6) for product keys. The probability of expert
    i * n + j, a softmax over all n * n sums, is the product of the softmaxes of the two halves, so its mean over the
    tokens is one [n, N] x [N, n] product and nothing of size N * E is formed.

    Args:
        scores_2Nn: the router's scores for the first and the second keys.
        index_Nk: the experts that `search_experts` chose by them.
        valid_N: False for tokens that do not count (padding).
    """
    keys = scores_2Nn.shape[-1]
    first, second = scores_2Nn.softmax(-1, dtype=torch.promote_types(scores_2Nn.dtype, torch.float32))
    with torch.no_grad():
        share_E = _share(index_Nk, keys * keys, valid_N)
    if valid_N is None:
        tokens: Tensor | int = first.shape[0]
    else:
        first = first * valid_N[:, None]
        tokens = valid_N.sum().clamp(min=1)
    # In bf16, which autocast would choose, the mean of many small numbers would be rounded to three digits.
    with torch.autocast(scores_2Nn.device.type, enabled=False):
        probability_E = (first.T @ second / tokens).flatten()
    return keys * keys * (share_E * probability_E).sum()


@dataclass(frozen=True)
class ExpertLoad:
    """How the choices of a batch spread over the experts of one layer.

    `used` is the share of experts that some token chose; `entropy` that of the choices over the log of the number of
    experts, 1 when all are chosen equally often; `busiest` the share of all choices that fell on one expert.
    """

    used: float
    entropy: float
    busiest: float


def load_statistics(scores_2Nn: Tensor, top_k: int, valid_N: Tensor | None = None) -> ExpertLoad:
    """The load of one layer's experts, from its router's scores (an entry of a model's `router_logits`)."""
    experts = scores_2Nn.shape[-1] ** 2
    with torch.no_grad():
        # In the precision in which a layer adds them.
        scores_2Nn = scores_2Nn.to(torch.promote_types(scores_2Nn.dtype, torch.float32))
        share_E = _share(search_experts(scores_2Nn, top_k)[1], experts, valid_N)
        used = (share_E > 0).float().mean().item()
        entropy = torch.special.entr(share_E).sum().item() / math.log(experts) if experts > 1 else 1.0
    return ExpertLoad(used=used, entropy=entropy, busiest=share_E.max().item())


def _share(index_Nk: Tensor, experts: int, valid_N: Tensor | None) -> Tensor:
    """The share of all choices that fell on each expert: [E] in fp32."""
    if has_triton(index_Nk) and experts <= KERNEL_EXPERTS:
        from small_doge.ops.expert_retrieval.triton_count import triton_count

        count_E = triton_count(index_Nk, experts, valid_N).float()
    else:
        one = index_Nk.new_ones(index_Nk.shape[0], dtype=torch.float32) if valid_N is None else valid_N.float()
        chosen = torch.zeros(experts, device=index_Nk.device)
        count_E = chosen.scatter_add_(0, index_Nk.flatten(), one.repeat_interleave(index_Nk.shape[1]))
    return count_E / count_E.sum().clamp(min=1)
