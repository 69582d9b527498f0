"""Linear maps in the shape that a GPU likes, where the model is compiled for training; elsewhere as they are.

A map is left alone where it is more than its weight: biases, adapters, hooks that gather sharded parameters.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_doge.ops.products import narrow_gradient, tuned_linear


def plain_linear(x: Tensor, linear: nn.Module) -> Tensor:
    """What one map gives for `x` [..., d]."""
    return tuned_linear(x, linear.weight) if reshapable(x, linear) else linear(x)  # type: ignore[arg-type]


def joint_linear(x: Tensor, *maps: nn.Module) -> tuple[Tensor, ...]:
    """What each map gives for `x` [..., d], by one product with the weights put together.

    It reads `x` once and not once a map, and backward makes the gradient of `x` in one product, without sums. The map
    of an `nn.Embedding` is the product with all of its rows.
    """
    joint = joint_product(x, *maps)
    if joint is None:
        return tuple(F.linear(x, m.weight) if isinstance(m, nn.Embedding) else m(x) for m in maps)
    return joint.split([m.weight.shape[0] for m in maps], -1)  # type: ignore[index]


def joint_product(x: Tensor, *maps: nn.Module) -> Tensor | None:
    """`joint_linear`'s one product, side by side in the last dimension; None where the maps are left alone."""
    if not reshapable(x, *maps):
        return None
    return tuned_linear(x, torch.cat([m.weight for m in maps]))  # type: ignore[misc]


def summed_linear(x: Tensor, linear: nn.Linear, table: nn.Embedding) -> Tensor:
    """linear(first) + second @ table for `x` = [first, second] side by side, where it can be by one product."""
    if not reshapable(x, linear, table):
        first, second = x.split([linear.in_features, table.num_embeddings], -1)
        return linear(first) + second @ table.weight
    return x @ torch.cat([linear.weight.T, table.weight])


def narrow_linear(x: Tensor, narrow: nn.Module) -> Tensor:
    """What a map to a handful of features gives for `x` [..., d], in fp32, as products and sums.

    These fuse with what stands around them; a matrix product so narrow costs more than it computes. Only the gradient
    of the weight, a sum over all tokens, is a product of matrices.
    """
    if not reshapable(x, narrow):
        return narrow(x)
    return _NarrowProduct.apply(x, narrow.weight)


class _NarrowProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Sums side by side, which read x once; a sum over [..., f, d] would read it f times.
        return torch.stack([(x.float() * row).sum(-1) for row in weight.float()], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = (grad[..., None] * weight.float()).sum(-2)
        grad_weight = narrow_gradient(grad.flatten(0, -2), x.flatten(0, -2))
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


def compiled_for_training(x: Tensor) -> bool:
    """Whether torch.compile is making a forward and a backward for a GPU."""
    return x.is_cuda and torch.is_grad_enabled() and torch.compiler.is_compiling()


def reshapable(x: Tensor, *maps: nn.Module) -> bool:
    """Whether what the maps give for `x` may be computed in another way than by their own forward."""
    return compiled_for_training(x) and all(
        (type(m) is nn.Embedding or (type(m) is nn.Linear and m.bias is None)) and not m._forward_pre_hooks
        for m in maps
    )
