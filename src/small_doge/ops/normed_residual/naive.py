"""The definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def naive_normed_residual(x: Tensor, weight: Tensor, residual: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight (arXiv 1910.07467) and residual * x for `x` [..., d], both of its shape and dtype.

    `weight` and `residual` are [d], and the mean square is over the last dimension.
    """
    normed = F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)
    # Autocast may give fp32 back: what comes after expects the dtype that came in.
    return normed.to(x.dtype), residual.to(x.dtype) * x
