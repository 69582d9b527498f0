"""The language model head and its loss as one operation: cross-entropy of hidden @ weight.T, the logits never kept.

The head of a small model is most of its work (48 % of the FLOPs of Doge-20M), and its logits most of its memory:
65,536 tokens of 32,768 fp32 logits are 8 GiB. Here a chunk of tokens goes through at a time. As the gradient with
respect to the logits follows from the logits alone, both gradients are made in the forward pass, while the chunk is at
hand, and backward only scales them.

| backend   | serves | device |
|-----------|--------|--------|
| `naive`   | everything, with all logits in fp32 at once: the definition | any |
| `chunked` | everything, in plain torch, chunk by chunk | any |
| `triton`  | bf16, one kernel for the product, the exponentials and their sums | CUDA, Triton |
"""

from __future__ import annotations

import torch
from torch import Tensor

from small_doge.ops.linear_cross_entropy.chunked import chunked_linear_cross_entropy
from small_doge.ops.linear_cross_entropy.naive import naive_linear_cross_entropy
from small_doge.ops.support import has_triton

BACKENDS = ("naive", "chunked", "triton")

__all__ = ["BACKENDS", "linear_cross_entropy"]


def linear_cross_entropy(
    hidden_Nd: Tensor, weight_Vd: Tensor, labels_N: Tensor, *, ignore_index: int = -100, backend: str = "auto"
) -> Tensor:
    """Sum over the tokens of -log softmax(hidden @ weight.T)[label].

    Under autocast the products are computed in its dtype; sums, the loss and the gradient of the weight stay fp32.

    Args:
        hidden_Nd: What the head sees of N tokens.
        weight_Vd: The head, one row a token of the vocabulary.
        labels_N: Integer, the next token of each, or `ignore_index`.
        ignore_index: Marks tokens that add nothing.
        backend: One of `BACKENDS`, or "auto": `triton` for bf16 on a GPU with Triton where the width is a
            multiple of 8, else `chunked`.

    Returns:
        fp32 scalar (fp64 for fp64). `triton` counts no other token as more than e^60 times as likely as the label, so
        its loss is exact up to 60 nats a token; a uniform guess among 32,768 is 10.4.

    Raises:
        ValueError: shapes that do not fit, or a backend that does not exist or cannot do this.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend {backend!r} does not exist: choose 'auto' or one of {', '.join(BACKENDS)}")
    if hidden_Nd.dim() != 2 or weight_Vd.dim() != 2 or hidden_Nd.shape[1] != weight_Vd.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden_Nd.shape)} and weight {tuple(weight_Vd.shape)} must be [N, d] and [V, d]"
        )
    if labels_N.shape != hidden_Nd.shape[:1]:
        raise ValueError(f"labels must be [N] = {tuple(hidden_Nd.shape[:1])}, not {tuple(labels_N.shape)}")
    device = hidden_Nd.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_Nd.dtype
    if backend == "auto":
        backend = "triton" if _serves_triton(hidden_Nd, dtype) else "chunked"
    if backend == "naive":
        return naive_linear_cross_entropy(hidden_Nd.to(dtype), weight_Vd.to(dtype), labels_N, ignore_index)
    if backend == "chunked":
        return chunked_linear_cross_entropy(hidden_Nd, weight_Vd, labels_N, ignore_index, dtype)
    if dtype != torch.bfloat16:
        raise ValueError(f"backend 'triton' computes in bf16, not {dtype}: use 'auto'")
    from small_doge.ops.linear_cross_entropy.triton_head import triton_linear_cross_entropy

    return triton_linear_cross_entropy(hidden_Nd, weight_Vd, labels_N, ignore_index)


def _serves_triton(hidden_Nd: Tensor, dtype: torch.dtype) -> bool:
    # Bulk copies want rows at multiples of 16 bytes.
    return dtype == torch.bfloat16 and has_triton(hidden_Nd) and hidden_Nd.shape[1] % 8 == 0
