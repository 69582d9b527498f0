"""The experts' output by gathered rows, none of which forms [N, k, d].

A table of embeddings [E, d], k rows of it for each of N tokens, and
- `gathered_dots`: x . table_e                  [N, d] -> [N, k]
- `gathered_sum`:  sum over k of a * table_e    [N, k] -> [N, d]
- the table's gradient, in both: sum over the pairs that chose e of a * y, [N, k] x [N, d] -> [E, d]

Each of the first two is the other's backward, and all three are torch's embedding bag: the sum is its forward, the dots
its gradient for the weights, and the table's gradient a bag for each expert over the tokens that chose it, which needs
no atomic addition. Beside inputs and outputs, memory is O(N * k) for the pairs sorted by expert.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gathered_dots(x_Nd: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
    """The dot product of each token with each of its k rows of the table: [N, k], in the table's dtype."""
    return _Dots.apply(x_Nd.to(table_Ed.dtype), table_Ed, index_Nk)


def gathered_sum(weight_Nk: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
    """The weighted sum of each token's k rows of the table: [N, d], in the table's dtype."""
    return _Sum.apply(weight_Nk.to(table_Ed.dtype), table_Ed, index_Nk)


def _dots(x_Nd: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
    tokens, top_k = index_Nk.shape
    starts = torch.arange(0, tokens * top_k, top_k, device=x_Nd.device)
    token_of = torch.arange(tokens, device=x_Nd.device).repeat_interleave(top_k)
    # The gradient of an embedding bag for its per-sample weights, which is this dot product; torch has no name for it
    # outside of autograd, and on CUDA no kernel in bf16. mode 0 is the sum, padding index -1 none.
    dtype = torch.float32 if x_Nd.is_cuda and x_Nd.dtype == torch.bfloat16 else x_Nd.dtype
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x_Nd.contiguous().to(dtype), table_Ed.contiguous().to(dtype), index_Nk.flatten(), starts, token_of, 0, -1
    )
    return dots.view(tokens, top_k).to(x_Nd.dtype)


def _sum(weight_Nk: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
    return F.embedding_bag(index_Nk, table_Ed, per_sample_weights=weight_Nk, mode="sum")


def _table_gradient(weight_Nk: Tensor, y_Nd: Tensor, index_Nk: Tensor, experts: int) -> Tensor:
    chosen, pair = index_Nk.flatten().sort(stable=True)
    starts = torch.searchsorted(chosen, torch.arange(experts, device=chosen.device))
    weights = weight_Nk.flatten()[pair]
    return F.embedding_bag(pair // index_Nk.shape[1], y_Nd, starts, per_sample_weights=weights, mode="sum")


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_Nd: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
        ctx.save_for_backward(x_Nd, table_Ed, index_Nk)
        return _dots(x_Nd, table_Ed, index_Nk)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_Nd, table_Ed, index_Nk = ctx.saved_tensors
        grad_x = _sum(grads[0], table_Ed, index_Nk) if ctx.needs_input_grad[0] else None
        grad_table = None
        if ctx.needs_input_grad[1]:
            grad_table = _table_gradient(grads[0], x_Nd, index_Nk, table_Ed.shape[0])
        return grad_x, grad_table, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_Nk: Tensor, table_Ed: Tensor, index_Nk: Tensor) -> Tensor:
        ctx.save_for_backward(weight_Nk, table_Ed, index_Nk)
        return _sum(weight_Nk, table_Ed, index_Nk)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight_Nk, table_Ed, index_Nk = ctx.saved_tensors
        grad_weight = _dots(grads[0], table_Ed, index_Nk) if ctx.needs_input_grad[0] else None
        grad_table = None
        if ctx.needs_input_grad[1]:
            grad_table = _table_gradient(weight_Nk, grads[0], index_Nk, table_Ed.shape[0])
        return grad_weight, grad_table, None
