"""The definition: all logits at once, in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def naive_linear_cross_entropy(hidden_Nd: Tensor, weight_Vd: Tensor, labels_N: Tensor, ignore_index: int) -> Tensor:
    """Sum of the cross-entropies of hidden @ weight.T, the products in the dtype given and the rest in fp32."""
    logits = hidden_Nd @ weight_Vd.T
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype), labels_N, ignore_index=ignore_index, reduction="sum")
