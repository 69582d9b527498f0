"""The definition: RMSNorm of each query and key head, then the rotation by its position; the values' dot products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) of the last dimension by its position's angle (arXiv 2104.09864).

    cos and sin broadcast to x; both halves of their last dimension are the same.
    """
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def naive_normed_rotary_heads(
    joint_BTF: Tensor,
    query_weight_D: Tensor,
    key_weight_D: Tensor,
    dot_weight_Sd: Tensor,
    cos_BTD: Tensor,
    sin_BTD: Tensor,
    *,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `small_doge.ops.rotary_heads.normed_rotary_heads`, in any dtype."""
    size = query_weight_D.shape[0]
    groups = (joint_BTF.shape[-1] // size - heads) // 2
    query, key, value = joint_BTF.unflatten(-1, (-1, size)).split([heads, groups, groups], -2)
    cos, sin = cos_BTD[..., None, :], sin_BTD[..., None, :]
    query = rotate(F.rms_norm(query, (size,), query_weight_D, eps), cos, sin)
    key = rotate(F.rms_norm(key, (size,), key_weight_D, eps), cos, sin)
    dtype = torch.promote_types(value.dtype, torch.float32)
    return query, key, value, F.linear(value.flatten(-2).to(dtype), dot_weight_Sd.to(dtype))
