"""RMSNorm, and what begins either half of a decoder layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_doge.models.doge.joint_linear import compiled_for_training
from small_doge.ops.normed_residual import normed_residual


class DogeRMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, the mean square in fp32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        # Autocast may give fp32 back: what comes after expects the dtype that came in.
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.variance_epsilon).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


def normed_and_carried(x: Tensor, norm: nn.Module, residual: Tensor) -> tuple[Tensor, Tensor]:
    """norm(x), which a layer's map reads, and residual * x, to which its output is added; both as `x`, [..., d]."""
    if _fusable(x, norm):
        return normed_residual(x, norm.weight, residual, norm.variance_epsilon)  # type: ignore[arg-type]
    return norm(x), residual.to(x.dtype) * x


def _fusable(x: Tensor, norm: nn.Module) -> bool:
    return compiled_for_training(x) and type(norm) is DogeRMSNorm and not norm._forward_pre_hooks
