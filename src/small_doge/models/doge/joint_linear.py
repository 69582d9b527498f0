"""Several linear maps of one input as one matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def joint_linear(x: Tensor, *maps: nn.Module) -> tuple[Tensor, ...]:
    """What each map gives for `x` [..., d].

    Compiled for training on a GPU, the weights are put together first: the product reads `x` once and not once a map,
    and backward makes the gradient of `x` in one product, without sums. Elsewhere, and where a map is more than its
    weight (biases, adapters, hooks that gather sharded parameters), each is called as it is.
    """
    plain = all(type(m) is nn.Linear and m.bias is None and not m._forward_pre_hooks for m in maps)
    if not (plain and x.is_cuda and torch.is_grad_enabled() and torch.compiler.is_compiling()):
        return tuple(m(x) for m in maps)
    weights: list[Tensor] = [m.weight for m in maps]  # type: ignore[misc]
    return F.linear(x, torch.cat(weights)).split([w.shape[0] for w in weights], -1)
