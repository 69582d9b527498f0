"""Norm and rotation of all heads in one kernel each way.

A program takes BM tokens of one head. With x = (x1, x2) the halves of a head, r = 1 / rms(x), n = x r w:

    y1 = n1 cos - n2 sin,   y2 = n2 cos + n1 sin

and backward, with (g1, g2) the incoming gradient turned back by the same angle and h = g w:

    dx = r h - r^3 x mean(h x),   dw = sum over tokens of g x r

A value is read on the way, and multiplied with the rows of W to the dot products p = W v; backward dv += W^T dp.

All in fp32, rounded once. The least that must be moved is F = (H + 2G) D numbers a token in and as many out, and
backward the queries and keys once more: nothing but that is read or written, beside the tables, p, and the partial sums
of p and dw, which are added in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.products import narrow_gradient
from small_doge.ops.support import traceable

TOKENS = 32
"""Of a program; four warps hold the halves of their heads in registers."""


@triton.jit
def _half(pointer, stride, token, present, d, D: tl.constexpr):
    """Both halves of D numbers a token, in fp32."""
    at = pointer + (token.to(tl.int64) * stride)[:, None] + d[None, :]
    mask = present[:, None] & (d < D // 2)[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32), tl.load(at + D // 2, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, stride, token, present, d, first, second, D: tl.constexpr):
    at = pointer + (token.to(tl.int64) * stride)[:, None] + d[None, :]
    mask = present[:, None] & (d < D // 2)[None, :]
    tl.store(at, first.to(pointer.dtype.element_ty), mask=mask)
    tl.store(at + D // 2, second.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _angle(cos_ptr, sin_ptr, table_b, table_t, token, present, length, d, D: tl.constexpr):
    at = (token // length).to(tl.int64) * table_b + (token % length) * table_t
    mask = present[:, None] & (d < D // 2)[None, :]
    cos = tl.load(cos_ptr + at[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
    return cos, tl.load(sin_ptr + at[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _weight(weight_ptr, d, D: tl.constexpr):
    first = tl.load(weight_ptr + d, mask=d < D // 2, other=0.0).to(tl.float32)
    return first[None, :], tl.load(weight_ptr + D // 2 + d, mask=d < D // 2, other=0.0).to(tl.float32)[None, :]


@triton.jit
def forward_kernel(
    joint_ptr,
    query_weight_ptr,
    key_weight_ptr,
    dot_weight_ptr,
    cos_ptr,
    sin_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    dot_ptr,
    tokens,
    length,
    table_b,
    table_t,
    EPS: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BM: tl.constexpr,
):
    head = tl.program_id(1)
    token = tl.program_id(0) * BM + tl.arange(0, BM)
    present = token < tokens
    d = tl.arange(0, HALF)
    first, second = _half(joint_ptr + head * D, (H + 2 * G) * D, token, present, d, D)
    if head < H + G:
        r = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + EPS)[:, None]
        w1, w2 = _weight(query_weight_ptr if head < H else key_weight_ptr, d, D)
        cos, sin = _angle(cos_ptr, sin_ptr, table_b, table_t, token, present, length, d, D)
        first, second = first * r * w1, second * r * w2
        first, second = first * cos - second * sin, second * cos + first * sin
    if head < H:
        _store(query_ptr + head * D, H * D, token, present, d, first, second, D)
    elif head < H + G:
        _store(key_ptr + (head - H) * D, G * D, token, present, d, first, second, D)
    else:
        group = head - H - G
        _store(value_ptr + group * D, G * D, token, present, d, first, second, D)
        for s in tl.static_range(S):
            w1, w2 = _weight(dot_weight_ptr + (s * G + group) * D, d, D)
            dot = tl.sum(first * w1, 1) + tl.sum(second * w2, 1)
            tl.store(dot_ptr + (token.to(tl.int64) * G + group) * S + s, dot, mask=present)


@triton.jit
def backward_kernel(
    joint_ptr,
    query_weight_ptr,
    key_weight_ptr,
    dot_weight_ptr,
    cos_ptr,
    sin_ptr,
    dquery_ptr,
    dkey_ptr,
    dvalue_ptr,
    ddot_ptr,
    djoint_ptr,
    dweight_ptr,
    tokens,
    length,
    table_b,
    table_t,
    EPS: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BM: tl.constexpr,
):
    head = tl.program_id(1)
    token = tl.program_id(0) * BM + tl.arange(0, BM)
    present = token < tokens
    d = tl.arange(0, HALF)
    if head < H:
        grad1, grad2 = _half(dquery_ptr + head * D, H * D, token, present, d, D)
    elif head < H + G:
        grad1, grad2 = _half(dkey_ptr + (head - H) * D, G * D, token, present, d, D)
    else:
        group = head - H - G
        grad1, grad2 = _half(dvalue_ptr + group * D, G * D, token, present, d, D)
        for s in tl.static_range(S):
            w1, w2 = _weight(dot_weight_ptr + (s * G + group) * D, d, D)
            ddot = tl.load(ddot_ptr + token.to(tl.int64) * S + s, mask=present, other=0.0)[:, None]
            grad1, grad2 = grad1 + ddot * w1, grad2 + ddot * w2
    if head < H + G:
        x1, x2 = _half(joint_ptr + head * D, (H + 2 * G) * D, token, present, d, D)
        r = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / D + EPS)[:, None]
        w1, w2 = _weight(query_weight_ptr if head < H else key_weight_ptr, d, D)
        cos, sin = _angle(cos_ptr, sin_ptr, table_b, table_t, token, present, length, d, D)
        grad1, grad2 = grad1 * cos + grad2 * sin, grad2 * cos - grad1 * sin
        # Every token that is not present has grad and x zero.
        part_ptr = dweight_ptr + (tl.program_id(0).to(tl.int64) * (H + G) + head) * D
        tl.store(part_ptr + d, tl.sum(grad1 * x1 * r, 0), mask=d < D // 2)
        tl.store(part_ptr + D // 2 + d, tl.sum(grad2 * x2 * r, 0), mask=d < D // 2)
        grad1, grad2 = grad1 * w1, grad2 * w2
        along = (tl.sum(grad1 * x1, 1) + tl.sum(grad2 * x2, 1))[:, None] / D * r * r
        grad1, grad2 = r * (grad1 - x1 * along), r * (grad2 - x2 * along)
    _store(djoint_ptr + head * D, (H + 2 * G) * D, token, present, d, grad1, grad2, D)


def _launch(
    joint: Tensor, weight: Tensor, dot_weight: Tensor, table: Tensor, heads: int
) -> tuple[tuple[int, int], dict[str, Any]]:
    batch, length, _ = joint.shape
    size = weight.shape[0]
    groups = dot_weight.shape[1] // size
    tokens = batch * length
    shapes = {
        "tokens": tokens,
        "length": length,
        "table_b": table.stride(0) if table.shape[0] > 1 else 0,
        "table_t": table.stride(1),
        "H": heads,
        "G": groups,
        "S": dot_weight.shape[0],
        "D": size,
        "HALF": triton.next_power_of_2(size // 2),
        "BM": TOKENS,
    }
    return (triton.cdiv(tokens, TOKENS), heads + 2 * groups), shapes


@torch.library.triton_op("small_doge::normed_rotary_heads", mutates_args=())
def triton_normed_rotary_heads(
    joint: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    dot_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `small_doge.ops.rotary_heads.normed_rotary_heads`."""
    joint, dot_weight = joint.contiguous(), dot_weight.contiguous()
    batch, length, _ = joint.shape
    grid, shapes = _launch(joint, query_weight, dot_weight, cos, heads)
    groups, size = shapes["G"], shapes["D"]
    query, key, value = (joint.new_empty(batch, length, count, size) for count in (heads, groups, groups))
    dots = joint.new_empty(batch, length, groups, shapes["S"], dtype=torch.float32)
    weights = (query_weight, key_weight, dot_weight)
    with torch.cuda.device_of(joint):
        traceable(forward_kernel)[grid](joint, *weights, cos, sin, query, key, value, dots, **shapes, EPS=eps)
    return query, key, value, dots.sum(-2)


@torch.library.triton_op("small_doge::normed_rotary_heads_backward", mutates_args=())
def _backward(
    dquery: Tensor,
    dkey: Tensor,
    dvalue: Tensor,
    ddot: Tensor,
    joint: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    dot_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    joint, dot_weight = joint.contiguous(), dot_weight.contiguous()
    grid, shapes = _launch(joint, query_weight, dot_weight, cos, heads)
    djoint = torch.empty_like(joint)
    parts = torch.empty(grid[0], heads + shapes["G"], shapes["D"], dtype=torch.float32, device=joint.device)
    weights = (query_weight, key_weight, dot_weight)
    grads = [grad.contiguous() for grad in (dquery, dkey, dvalue, ddot)]
    with torch.cuda.device_of(joint):
        traceable(backward_kernel)[grid](joint, *weights, cos, sin, *grads, djoint, parts, **shapes, EPS=eps)
    dweight_HGD = parts.sum(0)
    dweights = [part.sum(0).to(query_weight.dtype) for part in dweight_HGD.split([heads, shapes["G"]])]
    values = joint.flatten(0, 1)[:, -dot_weight.shape[1] :]
    return djoint, *dweights, narrow_gradient(ddot.flatten(0, 1), values).to(dot_weight.dtype)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.heads, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, *grads):
    return *_backward(*grads, *ctx.saved_tensors, ctx.heads, ctx.eps), None, None, None, None


torch.library.register_autograd("small_doge::normed_rotary_heads", _differentiate, setup_context=_save)
