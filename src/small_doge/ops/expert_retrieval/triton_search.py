"""The search for a token's experts in one kernel each way, where torch sorts twice and gathers eight times.

A program takes BT tokens. A score and its place are one integer, the score in the high bits and the place, counted from
the right, in the low ones: sorted, they are in the order of the definition, ties included. Read are the 2n scores of a
token, written its k experts and their scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from small_doge.ops.expert_retrieval.candidates import rank_pairs
from small_doge.ops.support import traceable

FORWARD = {"BT": 4, "num_warps": 1}
"""Tokens and warps of a program: within a warp, what is sorted and gathered need not be waited for."""
BACKWARD = {"BT": 8, "num_warps": 4}
LOW = tl.constexpr(32)
"""Bits below a score: a place, and below that, of candidates, the expert in EXPERT bits."""
EXPERT = tl.constexpr(20)
EXPERT_MASK = tl.constexpr((1 << 20) - 1)


@triton.jit
def _ordered(score):
    """An integer that is ordered as the score is, in the high bits; what is not a number comes first, as infinity.

    So what torch's sort puts first is first here, and is seen in the loss; and zeros are equal.
    """
    score = tl.where(score == score, score, float("inf")) + 0.0
    bits = score.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << LOW


@triton.jit
def _score(ordered):
    bits = (ordered >> LOW).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _half(pointer, stride, token, present, n, wanted, NP: tl.constexpr, RANKS: tl.constexpr):
    """The scores of one half at the wanted ranks, and their keys."""
    key = tl.arange(0, NP)
    mask = present[:, None] & (key < n)[None, :]
    score = tl.load(pointer + (token.to(tl.int64) * stride)[:, None] + key[None, :], mask=mask, other=float("-inf"))
    best = tl.gather(tl.topk(_ordered(score) | (NP - 1 - key)[None, :], RANKS), wanted, 1)
    return _score(best), NP - 1 - (best & (NP - 1)).to(tl.int32)


@triton.jit
def search_kernel(
    scores_ptr,
    pairs_ptr,
    best_ptr,
    index_ptr,
    half_stride,
    token_stride,
    tokens,
    n,
    k,
    candidates,
    NP: tl.constexpr,
    RANKS: tl.constexpr,
    CP: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
):
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    present = token < tokens
    c = tl.arange(0, CP)
    pair = pairs_ptr + 2 * c + tl.zeros([BT, 1], tl.int32)
    possible = (c < candidates)[None, :]
    first_rank = tl.load(pair, mask=possible, other=0)
    second_rank = tl.load(pair + 1, mask=possible, other=0)
    first, first_key = _half(scores_ptr, token_stride, token, present, n, first_rank, NP, RANKS)
    second, second_key = _half(scores_ptr + half_stride, token_stride, token, present, n, second_rank, NP, RANKS)
    # What is possible stands further left than what is not, and so comes before it where both are -inf.
    total = _ordered(tl.where(possible, first + second, float("-inf")))
    best = tl.topk(total | ((CP - 1 - c)[None, :] << EXPERT) | (first_key * n + second_key), KP)
    choice = tl.arange(0, KP)[None, :]
    at = (token.to(tl.int64) * k)[:, None] + choice
    mask = present[:, None] & (choice < k)
    tl.store(best_ptr + at, _score(best), mask=mask)
    tl.store(index_ptr + at, best & EXPERT_MASK, mask=mask)


@triton.jit
def search_backward_kernel(
    grad_ptr,
    index_ptr,
    out_ptr,
    tokens,
    k,
    N: tl.constexpr,
    NP: tl.constexpr,
    BT: tl.constexpr,
):
    token = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    present = token < tokens
    key = tl.arange(0, NP)[None, :]
    first = tl.zeros([BT, NP], tl.float32)
    second = tl.zeros([BT, NP], tl.float32)
    for choice in range(k):
        grad = tl.load(grad_ptr + token * k + choice, mask=present, other=0.0)[:, None]
        expert = tl.load(index_ptr + token * k + choice, mask=present, other=0).to(tl.int32)[:, None]
        first += tl.where(expert // N == key, grad, 0.0)
        second += tl.where(expert % N == key, grad, 0.0)
    row = out_ptr + (token * 2 * N)[:, None] + key
    mask = present[:, None] & (key < N)
    tl.store(row, first, mask=mask)
    tl.store(row + N, second, mask=mask)


@torch.library.custom_op("small_doge::search_experts", mutates_args=())
def triton_search(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """`search_experts` for scores [2, N, n] in fp32."""
    _, tokens, keys = scores.shape
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    pairs = rank_pairs(keys, top_k, scores.device)
    best = scores.new_empty(tokens, top_k)
    index = torch.empty(tokens, top_k, dtype=torch.int64, device=scores.device)
    shapes = FORWARD | _padded(NP=keys, RANKS=min(keys, top_k), CP=pairs.shape[0], KP=top_k)
    with torch.cuda.device_of(scores):
        search_kernel[(triton.cdiv(tokens, shapes["BT"]),)](
            *(scores, pairs, best, index, *scores.stride()[:2], tokens, keys, top_k, pairs.shape[0]),
            **shapes,
        )
    return best, index


@torch.library.triton_op("small_doge::search_experts_backward", mutates_args=())
def _backward(grad: Tensor, index: Tensor, keys: int) -> Tensor:
    tokens, top_k = index.shape
    # As a router's product lies in memory: a token's two halves side by side.
    out = grad.new_empty(tokens, 2, keys).transpose(0, 1)
    shapes = BACKWARD | {"N": keys} | _padded(NP=keys)
    with torch.cuda.device_of(grad):
        traceable(search_backward_kernel)[(triton.cdiv(tokens, shapes["BT"]),)](
            grad.contiguous(), index.contiguous(), out, tokens, top_k, **shapes
        )
    return out


def _padded(**sizes: int) -> dict[str, int]:
    return {name: max(2, triton.next_power_of_2(size)) for name, size in sizes.items()}


@triton_search.register_fake
def _(scores, top_k):
    tokens = scores.shape[1]
    return scores.new_empty(tokens, top_k), scores.new_empty(tokens, top_k, dtype=torch.int64)


def _save(ctx, inputs, output) -> None:
    ctx.keys = inputs[0].shape[-1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _):
    return _backward(grad, *ctx.saved_tensors, ctx.keys), None


torch.library.register_autograd("small_doge::search_experts", _differentiate, setup_context=_save)
