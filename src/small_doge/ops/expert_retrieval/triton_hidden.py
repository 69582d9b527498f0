"""What stands between the two products of a mixture by tables, and its gradient, each in one pass over memory.

A program takes one token. It writes zeros for all experts and then, behind a barrier, what the k chosen ones have: of
the experts' products it reads k numbers. With w = softmax(s) over a token's k scores:

    h = silu(g) u,   a = w silu(x . down),   ds = w (dw - sum(w dw)) with dw = da silu(x . down)

In fp32, rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.support import traceable
from small_doge.ops.swiglu.triton_swiglu import gate_and_up, gated, gated_gradients

SHAPE = {"BLOCK": 512, "num_warps": 2}
"""Numbers that a program of so many warps has in hand."""


@triton.jit
def _weight_and_dot(joint_ptr, scores_ptr, f, expert, choice, k):
    """Of a token's experts: the softmax of their scores, and their dot products with the token."""
    score = tl.load(scores_ptr + choice, mask=choice < k, other=float("-inf")).to(tl.float32)
    weight = tl.exp(score - tl.max(score, 0))
    dot = tl.load(joint_ptr + 2 * f + expert, mask=choice < k, other=0.0).to(tl.float32)
    return weight / tl.sum(weight, 0), dot


@triton.jit
def _zeros(pointer, width, BLOCK: tl.constexpr):
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(pointer + at, tl.zeros([BLOCK], pointer.dtype.element_ty), mask=at < width)
    # What comes after it is written after it, whichever thread writes.
    tl.debug_barrier()


@triton.jit
def hidden_kernel(
    joint_ptr, scores_ptr, index_ptr, out_ptr, f, experts, k, KP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    joint_ptr += token * (2 * f + experts)
    out_ptr += token * (f + experts)
    choice = tl.arange(0, KP)
    expert = tl.load(index_ptr + token * k + choice, mask=choice < k, other=0)
    weight, dot = _weight_and_dot(joint_ptr, scores_ptr + token * k, f, expert, choice, k)
    for start in range(0, f, BLOCK):
        at = start + tl.arange(0, BLOCK)
        gate, up = gate_and_up(joint_ptr, f, at)
        tl.store(out_ptr + at, gated(gate, up).to(out_ptr.dtype.element_ty), mask=at < f)
    _zeros(out_ptr + f, experts, BLOCK)
    tl.store(out_ptr + f + expert, gated(dot, weight).to(out_ptr.dtype.element_ty), mask=choice < k)


@triton.jit
def hidden_backward_kernel(
    joint_ptr, scores_ptr, index_ptr, grad_ptr, djoint_ptr, dscores_ptr, f, experts, k,
    KP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    joint_ptr += token * (2 * f + experts)
    djoint_ptr += token * (2 * f + experts)
    grad_ptr += token * (f + experts)
    choice = tl.arange(0, KP)
    expert = tl.load(index_ptr + token * k + choice, mask=choice < k, other=0)
    weight, dot = _weight_and_dot(joint_ptr, scores_ptr + token * k, f, expert, choice, k)
    grad = tl.load(grad_ptr + f + expert, mask=choice < k, other=0.0).to(tl.float32)
    ddot, dweight = gated_gradients(grad, dot, weight)
    dscore = weight * (dweight - tl.sum(weight * dweight, 0))
    tl.store(dscores_ptr + token * k + choice, dscore, mask=choice < k)
    for start in range(0, f, BLOCK):
        at = start + tl.arange(0, BLOCK)
        gate, up = gate_and_up(joint_ptr, f, at)
        dgate, dup = gated_gradients(tl.load(grad_ptr + at, mask=at < f, other=0.0).to(tl.float32), gate, up)
        tl.store(djoint_ptr + at, dgate.to(djoint_ptr.dtype.element_ty), mask=at < f)
        tl.store(djoint_ptr + f + at, dup.to(djoint_ptr.dtype.element_ty), mask=at < f)
    _zeros(djoint_ptr + 2 * f, experts, BLOCK)
    tl.store(djoint_ptr + 2 * f + expert, ddot.to(djoint_ptr.dtype.element_ty), mask=choice < k)


@torch.library.triton_op("small_doge::mixture_hidden", mutates_args=())
def triton_hidden(joint_NF: Tensor, scores_Nk: Tensor, index_Nk: Tensor, experts: int) -> Tensor:
    """See `small_doge.ops.expert_retrieval.mixture_hidden`."""
    joint_NF, scores_Nk, index_Nk = joint_NF.contiguous(), scores_Nk.contiguous(), index_Nk.contiguous()
    out = joint_NF.new_empty(joint_NF.shape[0], (joint_NF.shape[1] + experts) // 2)
    with torch.cuda.device_of(joint_NF):
        traceable(hidden_kernel)[(out.shape[0],)](
            joint_NF, scores_Nk, index_Nk, out, **_shapes(joint_NF, index_Nk, experts)
        )
    return out


@torch.library.triton_op("small_doge::mixture_hidden_backward", mutates_args=())
def _backward(
    grad: Tensor, joint_NF: Tensor, scores_Nk: Tensor, index_Nk: Tensor, experts: int
) -> tuple[Tensor, Tensor]:
    joint_NF, scores_Nk, index_Nk = joint_NF.contiguous(), scores_Nk.contiguous(), index_Nk.contiguous()
    djoint, dscores = torch.empty_like(joint_NF), torch.empty_like(scores_Nk)
    shapes = _shapes(joint_NF, index_Nk, experts)
    with torch.cuda.device_of(joint_NF):
        traceable(hidden_backward_kernel)[(djoint.shape[0],)](
            joint_NF, scores_Nk, index_Nk, grad.contiguous(), djoint, dscores, **shapes
        )
    return djoint, dscores


def _shapes(joint_NF: Tensor, index_Nk: Tensor, experts: int) -> dict[str, int]:
    top_k = index_Nk.shape[1]
    width = (joint_NF.shape[1] - experts) // 2
    return SHAPE | {"f": width, "experts": experts, "k": top_k, "KP": triton.next_power_of_2(top_k)}


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.experts = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad):
    return *_backward(grad, *ctx.saved_tensors, ctx.experts), None, None


torch.library.register_autograd("small_doge::mixture_hidden", _differentiate, setup_context=_save)
