"""Cross-entropy of a linear head in plain torch, a chunk of tokens at a time, gradients made on the way."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 23
"""Logits of one chunk: 32 MiB in fp32."""


def chunked_linear_cross_entropy(
    hidden_Nd: Tensor, weight_Vd: Tensor, labels_N: Tensor, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """Sum of the cross-entropies of hidden @ weight.T; the products are computed in `dtype`."""
    differentiable = torch.is_grad_enabled() and (hidden_Nd.requires_grad or weight_Vd.requires_grad)
    return _forward(hidden_Nd, weight_Vd, labels_N, ignore_index, dtype, differentiable)[0]


@torch.library.custom_op("small_doge::chunked_linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, dtype: torch.dtype, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    head = weight.to(dtype)
    rows = max(1, CHUNK_LOGITS // weight.shape[0])
    grad_hidden = hidden.new_empty(hidden.shape if differentiable else 0)
    grad_weight = weight.new_zeros(weight.shape if differentiable else 0, dtype=wide)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    for start in range(0, hidden.shape[0], rows):
        chunk = hidden[start : start + rows].to(dtype)
        label = labels[start : start + rows]
        valid = label != ignore_index
        label = label.where(valid, 0)[:, None]
        logits = (chunk @ head.T).to(wide)
        logits -= logits.amax(-1, keepdim=True)
        target = logits.gather(-1, label)
        likelihood = logits.exp_()
        mass = likelihood.sum(-1, keepdim=True)
        total += ((mass.log() - target)[:, 0] * valid).sum()
        if differentiable:
            likelihood *= valid[:, None] / mass
            likelihood.scatter_add_(-1, label, -valid[:, None].to(wide))
            grad_logits = likelihood.to(dtype)
            grad_hidden[start : start + rows] = grad_logits @ head
            if dtype == wide:
                grad_weight.addmm_(grad_logits.T, chunk)
            else:
                grad_weight += grad_logits.T @ chunk
    return total, grad_hidden, grad_weight.to(weight.dtype)


@_forward.register_fake
def _(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, dtype: torch.dtype, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    if not differentiable:
        return total, hidden.new_empty(0), weight.new_empty(0)
    return total, torch.empty_like(hidden), torch.empty_like(weight)


def save_gradients(ctx, inputs, output) -> None:
    """Keep the gradients that forward made."""
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.others = len(inputs) - 2


def scale_gradients(ctx, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients that forward made, times that of the loss, which half precision would round."""
    scaled = [(made.to(grad.dtype) * grad).to(made.dtype) for made in ctx.saved_tensors]
    return *scaled, *(None,) * ctx.others


torch.library.register_autograd(_forward, scale_gradients, setup_context=save_gradients)
