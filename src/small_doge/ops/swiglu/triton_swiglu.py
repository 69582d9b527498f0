"""The gated unit and its gradient, each in one pass over memory. With s = sigmoid(g), and dh what comes in:

    h = g s u,   dg = dh u s (1 + g (1 - s)),   du = dh g s

In fp32, rounded once. Three numbers are moved for one of h forward, five backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.support import traceable

BLOCK = 1024
"""Numbers of one token in a program of four warps."""


# torch.compile finds what a kernel writes by following its addresses: helpers that load give none back.
@triton.jit
def gate_and_up(joint_ptr, f, at):
    """Of one token, in fp32."""
    gate = tl.load(joint_ptr + at, mask=at < f, other=0.0).to(tl.float32)
    return gate, tl.load(joint_ptr + f + at, mask=at < f, other=0.0).to(tl.float32)


@triton.jit
def gated(gate, up):
    return gate * tl.sigmoid(gate) * up


@triton.jit
def gated_gradients(grad, gate, up):
    """Of gate and of up."""
    open_ = tl.sigmoid(gate)
    return grad * up * open_ * (1 + gate * (1 - open_)), grad * gate * open_


@triton.jit
def swiglu_kernel(joint_ptr, out_ptr, f, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate, up = gate_and_up(joint_ptr + token * 2 * f, f, at)
    tl.store(out_ptr + token * f + at, gated(gate, up).to(out_ptr.dtype.element_ty), mask=at < f)


@triton.jit
def swiglu_backward_kernel(joint_ptr, grad_ptr, out_ptr, f, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate, up = gate_and_up(joint_ptr + token * 2 * f, f, at)
    grad = tl.load(grad_ptr + token * f + at, mask=at < f, other=0.0).to(tl.float32)
    dgate, dup = gated_gradients(grad, gate, up)
    out_ptr += token * 2 * f + at
    tl.store(out_ptr, dgate.to(out_ptr.dtype.element_ty), mask=at < f)
    tl.store(out_ptr + f, dup.to(out_ptr.dtype.element_ty), mask=at < f)


@torch.library.triton_op("small_doge::swiglu", mutates_args=())
def triton_swiglu(joint: Tensor) -> Tensor:
    """See `small_doge.ops.swiglu.swiglu`."""
    joint = joint.contiguous()
    out = joint.new_empty(*joint.shape[:-1], joint.shape[-1] // 2)
    with torch.cuda.device_of(joint):
        traceable(swiglu_kernel)[_grid(out)](joint, out, out.shape[-1], BLOCK=BLOCK)
    return out


@torch.library.triton_op("small_doge::swiglu_backward", mutates_args=())
def _backward(grad: Tensor, joint: Tensor) -> Tensor:
    joint, grad = joint.contiguous(), grad.contiguous()
    out = torch.empty_like(joint)
    with torch.cuda.device_of(joint):
        traceable(swiglu_backward_kernel)[_grid(grad)](joint, grad, out, grad.shape[-1], BLOCK=BLOCK)
    return out


def _grid(half: Tensor) -> tuple[int, int]:
    return half.numel() // half.shape[-1], triton.cdiv(half.shape[-1], BLOCK)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    return _backward(grad, *ctx.saved_tensors)


torch.library.register_autograd("small_doge::swiglu", _differentiate, setup_context=_save)
