"""Cross-entropy of a linear head on a GPU, in bf16: three matrix products and nothing else of that size.

Written with every likelihood relative to the label's, e_nv = exp(l_nv - l_ny), the loss is log sum_v e_nv and the
gradient with respect to the logits is e_nv / sum_v e_nv, less 1 at the label. The label's logit costs one dot product,
so it is known before the others, and the kernel that multiplies can write e at once, with the sums on the side: the
logits themselves are never written, and no pass over them is left. The division by the sum is a factor of a token, so
it goes onto the other operand of each of the two gradient products, which stay plain cuBLAS.

Bytes a token and vocabulary entry: 2 written, 4 read. FLOPs: 6 d, the least there can be without fewer logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from small_doge.ops.linear_cross_entropy.chunked import save_gradients, scale_gradients
from small_doge.ops.support import shared_memory

CHUNK_BYTES = 1 << 30
"""Of the likelihoods of one chunk of tokens."""

ROW_BLOCK = 512
"""Numbers of a token that a program takes at once in the kernels that only scale or multiply rows; two warps."""

LOG2E = 1.4426950408889634
LARGEST = 60.0
"""Nats by which a token may be likelier than the label; e^60 and its sums are far inside bf16's range."""


class Tiles(NamedTuple):
    """The shape of the kernel's work: tokens, vocabulary and width of a tile, warps, stages, and parts of a store."""

    tokens: int
    vocab: int
    width: int
    warps: int
    stages: int
    parts: int


LARGE = Tiles(128, 256, 64, 8, 4, 2)
"""Fastest of 17 shapes on an H100 at widths 256 and 1024; wants 200 KiB of shared memory."""
SMALL = Tiles(128, 128, 64, 4, 3, 1)
"""For GPUs with less: 96 KiB."""


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
    rows = max(1, min(tokens, CHUNK_BYTES // (dtype.itemsize * vocab)))
    grad_hidden = hidden.new_empty(hidden.shape if differentiable else 0)
    grad_weight = torch.zeros(weight.shape if differentiable else 0, dtype=torch.float32, device=weight.device)
    # Rows begin at multiples of 16 bytes, as bulk copies ask for.
    stride = triton.cdiv(vocab, 16) * 16
    likelihood = torch.empty(rows if differentiable else 1, stride, dtype=dtype, device=hidden.device)[:, :vocab]
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, tokens, rows):
        chunk = seen[start : start + rows]
        label = labels[start : start + rows]
        valid = label != ignore_index
        label = label.where(valid, 0)
        e = likelihood[: chunk.shape[0]]
        mass = relative_likelihoods(chunk, head, label, e, write=differentiable)
        total += torch.where(valid, mass.log(), 0).sum()
        if differentiable:
            share = torch.where(valid, 1 / mass, 0)
            e.scatter_(1, label[:, None], (1 - mass)[:, None].to(e.dtype))
            scale_rows(e @ head, share, grad_hidden[start : start + rows])
            add_product(grad_weight, e.T, scale_rows(chunk, share, torch.empty_like(chunk)))
    return total, grad_hidden, grad_weight.to(weight.dtype)


def relative_likelihoods(chunk_Nd: Tensor, head_Vd: Tensor, label_N: Tensor, out_NV: Tensor, write: bool) -> Tensor:
    """sum_v exp(logit_v - logit_label) of each token, fp32 [N]; `write` puts the terms into `out_NV`."""
    tokens, width = chunk_Nd.shape
    vocab = head_Vd.shape[0]
    tiles = choose_tiles(chunk_Nd.device)
    label_logit = torch.empty(tokens, dtype=torch.float32, device=chunk_Nd.device)
    blocks = triton.cdiv(vocab, tiles.vocab)
    partial = torch.empty(blocks, tokens, dtype=torch.float32, device=chunk_Nd.device)
    programs = min(_processors(chunk_Nd.device), triton.cdiv(tokens, tiles.tokens) * blocks)
    with torch.cuda.device_of(chunk_Nd):
        _label_logit_kernel[(tokens,)](chunk_Nd, head_Vd, label_N, label_logit, width, BLOCK=ROW_BLOCK, num_warps=2)
        _likelihood_kernel[(programs,)](
            _described(chunk_Nd, tiles.tokens, tiles.width),
            _described(head_Vd, tiles.vocab, tiles.width),
            _described(out_NV, tiles.tokens, tiles.vocab // tiles.parts),
            *(label_logit, partial, tokens, vocab, width),
            BM=tiles.tokens,
            BN=tiles.vocab,
            BK=tiles.width,
            LARGEST=LARGEST * LOG2E,
            PARTS=tiles.parts,
            WRITE=write,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    return partial.sum(0)


def scale_rows(x_Nd: Tensor, scale_N: Tensor, out_Nd: Tensor) -> Tensor:
    """out = scale * x, rounded once; `x_Nd` and `out_Nd` are contiguous."""
    tokens, width = x_Nd.shape
    with torch.cuda.device_of(x_Nd):
        _scale_kernel[(tokens, triton.cdiv(width, ROW_BLOCK))](
            x_Nd, scale_N, out_Nd, width, BLOCK=ROW_BLOCK, num_warps=2
        )  # fmt: skip
    return out_Nd


def choose_tiles(device: torch.device) -> Tiles:
    """The tiles that fit the device's shared memory."""
    return LARGE if device.type == "cuda" and shared_memory(device) >= 200 << 10 else SMALL


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _described(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


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
    x_desc,
    w_desc,
    e_desc,
    label_logit_ptr,
    partial_ptr,
    tokens,
    vocab,
    width,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    LARGEST: tl.constexpr,
    PARTS: tl.constexpr,
    WRITE: tl.constexpr,
):
    """Tiles of exp(x @ w.T - label's logit), and their row sums. A program takes every so many tiles, so that the
    loads of one overlap the exponentials and stores of the one before.
    """
    row_blocks = tl.cdiv(tokens, BM)
    tiles = row_blocks * tl.cdiv(vocab, BN)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        # Neighbours share a block of the vocabulary: what is read stays in the L2 cache beside the stream of writes.
        pn = tile // row_blocks
        pm = tile - pn * row_blocks
        logits = tl.zeros([BM, BN], dtype=tl.float32)
        for at in range(0, width, BK):
            x = x_desc.load([pm * BM, at])
            w = w_desc.load([pn * BN, at])
            logits = tl.dot(x, w.T, logits)
        m = pm * BM + tl.arange(0, BM)
        label_logit = tl.load(label_logit_ptr + m, mask=m < tokens, other=0.0)
        total = tl.zeros([BM], dtype=tl.float32)
        if PARTS == 1:
            total += _finish(logits, label_logit, e_desc, pm * BM, pn * BN, vocab, LARGEST, BN, WRITE)
        else:
            left, right = tl.split(tl.permute(tl.reshape(logits, (BM, 2, BN // 2)), (0, 2, 1)))
            total += _finish(left, label_logit, e_desc, pm * BM, pn * BN, vocab, LARGEST, BN // 2, WRITE)
            total += _finish(right, label_logit, e_desc, pm * BM, pn * BN + BN // 2, vocab, LARGEST, BN // 2, WRITE)
        tl.store(partial_ptr + pn.to(tl.int64) * tokens + m, total, mask=m < tokens)


@triton.jit
def _finish(
    logits, label_logit, e_desc, row, column, vocab, LARGEST: tl.constexpr, BN: tl.constexpr, WRITE: tl.constexpr
):
    """The exponentials of a tile, stored, and their sums."""
    e = tl.exp2(tl.minimum((logits - label_logit[:, None]) * 1.4426950408889634, LARGEST))
    e = tl.where((column + tl.arange(0, BN) < vocab)[None, :], e, 0.0)
    if WRITE:
        e_desc.store([row, column], e.to(e_desc.dtype))
    return tl.sum(e, 1)


@triton.jit
def _label_logit_kernel(x_ptr, w_ptr, label_ptr, out_ptr, width, BLOCK: tl.constexpr):
    """The dot product of a token's row with its label's row of the weight, in fp32."""
    token = tl.program_id(0).to(tl.int64)
    label = tl.load(label_ptr + token)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + token * width + at, mask=at < width, other=0.0).to(tl.float32)
        total += x * tl.load(w_ptr + label * width + at, mask=at < width, other=0.0).to(tl.float32)
    tl.store(out_ptr + token, tl.sum(total, 0))


@triton.jit
def _scale_kernel(x_ptr, scale_ptr, out_ptr, width, BLOCK: tl.constexpr):
    """A block of a token's row times the token's scale."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * width + at, mask=at < width, other=0.0).to(tl.float32)
    scaled = x * tl.load(scale_ptr + token)
    tl.store(out_ptr + token * width + at, scaled.to(out_ptr.dtype.element_ty), mask=at < width)
