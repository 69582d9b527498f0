"""The gradients of the normed and of the carried stream in one pass.

With r = 1 / rms(x), n = x r, g what comes in for w n, and c for v x:

    dx = r (w g - n mean(w g n)) + v c,   dw = sum of g n,   dv = sum of c x over tokens

In fp32, rounded once. Three numbers are read for one written. A program adds up its own tokens for dw and dv; the
programs' sums are added in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.normed_residual.naive import naive_normed_residual
from small_doge.ops.support import traceable

TOKENS = 64
"""Of a program."""


def tile(block: int) -> tuple[int, int]:
    """Tokens of one turn of a program's loop, and warps.

    A thread then holds 64 numbers of each input. Other tiles take up to twenty times as long on an H100 (LOG).
    """
    together = 16 if block <= 256 else 8
    return together, min(max(together * block // (64 * 32), 1), 16)


@triton.jit
def backward_kernel(
    x_ptr,
    weight_ptr,
    residual_ptr,
    dnormed_ptr,
    dcarried_ptr,
    dx_ptr,
    part_ptr,
    tokens,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    d = tl.arange(0, BLOCK)
    kind = x_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + d, mask=d < WIDTH, other=0.0).to(kind).to(tl.float32)[None, :]
    residual = tl.load(residual_ptr + d, mask=d < WIDTH, other=0.0).to(kind).to(tl.float32)[None, :]
    dweight = tl.zeros([BLOCK], tl.float32)
    dresidual = tl.zeros([BLOCK], tl.float32)
    begin = tl.program_id(0) * TOKENS
    for first in range(begin, begin + TOKENS, TOGETHER):
        token = (first + tl.arange(0, TOGETHER)).to(tl.int64)
        at = token[:, None] * WIDTH + d[None, :]
        mask = (token < tokens)[:, None] & (d < WIDTH)[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dnormed = tl.load(dnormed_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dcarried = tl.load(dcarried_ptr + at, mask=mask, other=0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + EPS)[:, None]
        normed = x * r
        dweight += tl.sum(dnormed * normed, 0)
        dresidual += tl.sum(dcarried * x, 0)
        weighed = dnormed * weight
        along = (tl.sum(weighed * normed, 1) / WIDTH)[:, None]
        dx = r * (weighed - normed * along) + residual * dcarried
        tl.store(dx_ptr + at, dx.to(kind), mask=mask)
    part_ptr += tl.program_id(0).to(tl.int64) * 2 * WIDTH + d
    tl.store(part_ptr, dweight, mask=d < WIDTH)
    tl.store(part_ptr + WIDTH, dresidual, mask=d < WIDTH)


@torch.library.triton_op("small_doge::normed_residual_backward", mutates_args=())
def _backward(
    dnormed: Tensor, dcarried: Tensor, x: Tensor, weight: Tensor, residual: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """dx, and [programs, 2, d]: the parts of dw and dv."""
    x, dnormed, dcarried = x.contiguous(), dnormed.contiguous(), dcarried.contiguous()
    width = x.shape[-1]
    tokens = x.numel() // width
    programs, block = triton.cdiv(tokens, TOKENS), triton.next_power_of_2(width)
    together, warps = tile(block)
    dx = torch.empty_like(x)
    parts = torch.empty(programs, 2, width, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        traceable(backward_kernel)[(programs,)](
            x,
            weight,
            residual,
            dnormed,
            dcarried,
            dx,
            parts,
            tokens,
            EPS=eps,
            WIDTH=width,
            BLOCK=block,
            TOKENS=TOKENS,
            TOGETHER=together,
            num_warps=warps,
        )
    return dx, parts


@torch.library.triton_op("small_doge::normed_residual", mutates_args=())
def triton_normed_residual(x: Tensor, weight: Tensor, residual: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `small_doge.ops.normed_residual.normed_residual`."""
    return naive_normed_residual(x, weight, residual, eps)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dnormed: Tensor, dcarried: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    x, weight, residual = ctx.saved_tensors
    dx, parts = _backward(dnormed, dcarried, x, weight, residual, ctx.eps)
    dweight, dresidual = parts.sum(0)
    return dx, dweight.to(weight.dtype), dresidual.to(residual.dtype), None


torch.library.register_autograd("small_doge::normed_residual", _differentiate, setup_context=_save)
