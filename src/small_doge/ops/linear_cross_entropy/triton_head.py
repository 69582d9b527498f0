"""Cross-entropy of a linear head on a GPU, in bf16: three matrix products and nothing else of that size.

Written with every likelihood relative to the label's, e_nv = exp(l_nv - l_ny), the loss is log sum_v e_nv and the
gradient with respect to the logits is e_nv / sum_v e_nv, less 1 at the label. The label's logit costs one dot product,
so it is known before the others, and the kernel that multiplies can write e at once, with the sums on the side: the
logits themselves are never written, and no pass over them is left. The division by the sum is a factor of a token, so
it goes onto the other operand of each of the two gradient products, which stay plain cuBLAS.

Bytes a token and vocabulary entry: 2 written, 4 read. FLOPs: 6 d, the least there can be without fewer logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.linear_cross_entropy.chunked import save_gradients, scale_gradients

CHUNK_BYTES = 1 << 30
"""Of the likelihoods of one chunk of tokens."""

LOG2E = 1.4426950408889634
LARGEST = 60.0
"""Nats by which a token may be likelier than the label; e^60 and its sums are far inside bf16's range."""

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 64


def triton_linear_cross_entropy(
    hidden_Nd: Tensor, weight_Vd: Tensor, labels_N: Tensor, ignore_index: int, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Sum of the cross-entropies of hidden @ weight.T: products in `dtype`, sums and the weight's gradient in fp32.

    `dtype` needs the range of bf16: the likelihoods reach e^60.
    """
    differentiable = torch.is_grad_enabled() and (hidden_Nd.requires_grad or weight_Vd.requires_grad)
    return _forward(hidden_Nd, weight_Vd, labels_N, ignore_index, dtype, differentiable)[0]


@torch.library.custom_op("small_doge::triton_linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, dtype: torch.dtype, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    head, seen = weight.to(dtype).contiguous(), hidden.to(dtype).contiguous()
    tokens, vocab = hidden.shape[0], weight.shape[0]
    rows = min(tokens, max(BLOCK_M, CHUNK_BYTES // (dtype.itemsize * vocab) // BLOCK_M * BLOCK_M))
    grad_hidden = hidden.new_empty(hidden.shape if differentiable else 0)
    grad_weight = torch.zeros(weight.shape if differentiable else 0, dtype=torch.float32, device=weight.device)
    likelihood = torch.empty((rows, vocab) if differentiable else 0, dtype=dtype, device=hidden.device)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, tokens, rows):
        chunk = seen[start : start + rows]
        label = labels[start : start + rows]
        valid = label != ignore_index
        label = label.where(valid, 0)
        e = likelihood[: chunk.shape[0]]
        mass = relative_likelihoods(chunk, head, label, e if differentiable else None)
        total += torch.where(valid, mass.log(), 0).sum()
        if differentiable:
            share = torch.where(valid, 1 / mass, 0)[:, None]
            e.scatter_(1, label[:, None], (1 - mass)[:, None].to(e.dtype))
            grad_hidden[start : start + rows] = share * (e @ head)
            add_product(grad_weight, e.T, (share * chunk).to(dtype))
    return total, grad_hidden, grad_weight.to(weight.dtype)


def relative_likelihoods(chunk_Nd: Tensor, head_Vd: Tensor, label_N: Tensor, out_NV: Tensor | None) -> Tensor:
    """sum_v exp(logit_v - logit_label) of each token, fp32 [N]; the terms go to `out_NV` in bf16 where it is given."""
    tokens, width = chunk_Nd.shape
    vocab = head_Vd.shape[0]
    label_logit = (chunk_Nd.float() * head_Vd[label_N]).sum(-1)
    blocks = triton.cdiv(vocab, BLOCK_N)
    partial = torch.empty(blocks, tokens, dtype=torch.float32, device=chunk_Nd.device)
    with torch.cuda.device_of(chunk_Nd):
        _likelihood_kernel[(triton.cdiv(tokens, BLOCK_M) * blocks,)](
            *(chunk_Nd, head_Vd, label_logit, out_NV, partial, tokens, vocab, width),
            BM=BLOCK_M,
            BN=BLOCK_N,
            BK=BLOCK_K,
            LARGEST=LARGEST * LOG2E,
            WRITE=out_NV is not None,
            num_warps=4,
            num_stages=3,
        )
    return partial.sum(0)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in fp32 whatever the operands are."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


@_forward.register_fake
def _(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, dtype: torch.dtype, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden.new_empty((), dtype=torch.float32)
    if not differentiable:
        return total, hidden.new_empty(0), weight.new_empty(0)
    return total, torch.empty_like(hidden), torch.empty_like(weight)


torch.library.register_autograd(_forward, scale_gradients, setup_context=save_gradients)


@triton.jit(do_not_specialize=["tokens"])
def _likelihood_kernel(
    x_ptr,
    w_ptr,
    label_logit_ptr,
    e_ptr,
    partial_ptr,
    tokens,
    vocab,
    width,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    LARGEST: tl.constexpr,
    WRITE: tl.constexpr,
):
    """One tile of exp(x @ w.T - label's logit): its row sums, and the tile itself."""
    # Neighbours share a block of the vocabulary: what is read stays in the L2 cache beside the stream of writes.
    pid = tl.program_id(0)
    row_blocks = tl.cdiv(tokens, BM)
    pn = pid // row_blocks
    pm = pid - pn * row_blocks
    m = pm * BM + tl.arange(0, BM)
    n = pn * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    m64 = m.to(tl.int64)
    x_at = x_ptr + m64[:, None] * width + k[None, :]
    w_at = w_ptr + n.to(tl.int64)[:, None] * width + k[None, :]
    row_in, column_in = m < tokens, n < vocab
    logits = tl.zeros([BM, BN], dtype=tl.float32)
    for at in range(0, width, BK):
        inside = k < width - at
        x = tl.load(x_at + at, mask=row_in[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_at + at, mask=column_in[:, None] & inside[None, :], other=0.0)
        logits = tl.dot(x, tl.trans(w), logits)
    label_logit = tl.load(label_logit_ptr + m, mask=row_in, other=0.0)
    above = (logits - label_logit[:, None]) * 1.4426950408889634
    e = tl.exp2(tl.minimum(above, LARGEST))
    e = tl.where(column_in[None, :], e, 0.0)
    tl.store(partial_ptr + pn.to(tl.int64) * tokens + m, tl.sum(e, 1), mask=row_in)
    if WRITE:
        at = e_ptr + m64[:, None] * vocab + n[None, :]
        tl.store(at, e.to(e_ptr.dtype.element_ty), mask=row_in[:, None] & column_in[None, :])
