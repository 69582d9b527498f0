"""Linear maps in the shape that a GPU likes, where the model is compiled for training; elsewhere as they are.

A map is left alone where it is more than its weight: biases, adapters, hooks that gather sharded parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def joint_linear(x: Tensor, *maps: nn.Module) -> tuple[Tensor, ...]:
    """What each map gives for `x` [..., d], by one product with the weights put together.

    It reads `x` once and not once a map, and backward makes the gradient of `x` in one product, without sums. The map
    of an `nn.Embedding` is the product with all of its rows.
    """
    if not _reshapable(x, *maps):
        return tuple(F.linear(x, m.weight) if isinstance(m, nn.Embedding) else m(x) for m in maps)
    weights: list[Tensor] = [m.weight for m in maps]  # type: ignore[misc]
    return F.linear(x, torch.cat(weights)).split([w.shape[0] for w in weights], -1)


def narrow_linear(x: Tensor, narrow: nn.Module) -> Tensor:
    """What a map to a handful of features gives for `x` [..., d], in fp32, as products and sums.

    These fuse with what stands around them; a matrix product so narrow costs more than it computes.
    """
    if not _reshapable(x, narrow):
        return narrow(x)
    weight: Tensor = narrow.weight  # type: ignore[assignment]
    return (x.float()[..., None, :] * weight.float()).sum(-1)


def _reshapable(x: Tensor, *maps: nn.Module) -> bool:
    if not (x.is_cuda and torch.is_grad_enabled() and torch.compiler.is_compiling()):
        return False
    return all(
        (type(m) is nn.Embedding or (type(m) is nn.Linear and m.bias is None)) and not m._forward_pre_hooks
        for m in maps
    )
