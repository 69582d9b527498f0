"""Causal attention with one bias per key by products and a softmax, the weights kept for the backward pass.

For short rows on a CPU: torch's fused kernel computes the weights twice and multiplies small tiles, which costs more
there than the memory it saves. Blocks of queries look at the keys up to their own, so half of the products with keys
that come later are never made. Serves the case S <= w, where nothing is masked but the future and, where there are
limits, padding and other documents.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 64
"""Queries of a block."""


def dense_attention(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    score_BGS: Tensor,
    *,
    limit_BS: Tensor | None = None,
    scale: float,
) -> Tensor:
    """softmax(scale * q.k + score) v, causal, the queries being the last T of the S keys: [B, H, T, D].

    With limits, key j is hidden from the queries at limit_j and after; a query that sees no key gives 0. Any floating
    dtype, half precision computed in fp32. For backward B * H * T * S / 2 weights are kept where T is S.
    """
    tensors = (query_BHTD, key_BGSD, value_BGSD, score_BGS)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return _forward(*tensors, limit_BS, scale, keep)[0]


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, int, int, int]]:
    """Of each block: its queries, the number of keys that it looks at, and where its weights of a head group stand."""
    heads, queries = query.shape[1:3]
    groups, keys = key.shape[1:3]
    at = 0
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        seen = keys - queries + stop
        size = heads // groups * (stop - start) * seen
        yield slice(start, stop), seen, at, at + size
        at += size


def _weights_kept(query: Tensor, key: Tensor) -> int:
    return max(end for *_, end in _blocks(query, key))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[B, H, T, D] as [B * G, R, T, D], contiguous."""
    return x.reshape(x.shape[0] * groups, -1, *x.shape[2:]).contiguous()


@torch.library.custom_op("small_doge::dense_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor, limit: Tensor | None, scale: float, keep: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    groups, keys = key.shape[1:3]
    first = keys - query.shape[2]
    q, k, v = (_by_group(x.to(dtype), groups) for x in (query, key, value))
    bias = score.to(dtype).reshape(-1, 1, keys)
    out = torch.empty_like(q)
    kept = q.new_empty(q.shape[0] * _weights_kept(query, key) if keep else 0)
    for span, seen, at, end in _blocks(query, key):
        rows, keys_before = q[:, :, span].flatten(1, 2), first + span.start
        place = kept[q.shape[0] * at : q.shape[0] * end] if keep else q.new_empty(q.shape[0] * (end - at))
        weights = place.view(*rows.shape[:2], seen)
        torch.baddbmm(bias[:, :, :seen], rows, k[:, 0, :seen].transpose(1, 2), alpha=scale, out=weights)
        by_head = weights.view(q.shape[0], q.shape[1], -1, seen)
        own = torch.ones(seen - keys_before, seen - keys_before, dtype=torch.bool, device=q.device)
        by_head[..., keys_before:].masked_fill_(own.triu_(1), torch.finfo(dtype).min)
        if limit is None:
            torch.softmax(weights, -1, out=weights)
        else:
            position = torch.arange(keys_before, seen, device=q.device)
            hidden = (position[:, None] >= limit[:, None, :seen]).repeat_interleave(groups, 0)[:, None]
            torch.softmax(by_head.masked_fill_(hidden, torch.finfo(dtype).min), -1, out=by_head)
            # Where a query sees no key at all, the future too has got weight.
            by_head[..., keys_before:].masked_fill_(own, 0.0)
            by_head.masked_fill_(hidden, 0.0)
        out[:, :, span] = (weights @ v[:, 0, :seen]).view_as(out[:, :, span])
    return out.view(query.shape).to(query.dtype), kept


@torch.library.custom_op("small_doge::dense_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, score: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, groups = kept.dtype, key.shape[1]
    g, q, k, v = (_by_group(x.to(dtype), groups) for x in (grad, query, key, value))
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dscore = score.new_zeros(q.shape[0], score.shape[2], dtype=dtype)
    for span, seen, at, end in _blocks(query, key):
        rows, grads = q[:, :, span].flatten(1, 2), g[:, :, span].flatten(1, 2)
        weights = kept[q.shape[0] * at : q.shape[0] * end].view(*rows.shape[:2], seen)
        dv[:, 0, :seen].baddbmm_(weights.transpose(1, 2), grads)
        dweights = grads @ v[:, 0, :seen].transpose(1, 2)
        dlogits = torch._softmax_backward_data(dweights, weights, -1, dtype)
        dscore[:, :seen] += dlogits.sum(1)
        dk[:, 0, :seen].baddbmm_(dlogits.transpose(1, 2), rows, alpha=scale)
        dq[:, :, span] = torch.baddbmm(rows, dlogits, k[:, 0, :seen], beta=0, alpha=scale).view_as(dq[:, :, span])
    grad_query, grad_key, grad_value = (d.view(x.shape).to(x.dtype) for d, x in ((dq, query), (dk, key), (dv, value)))
    # As the scores lie in memory: what made them, a head beside the next, goes on from there without a copy.
    return grad_query, grad_key, grad_value, torch.empty_like(score).copy_(dscore.view(score.shape))


@_forward.register_fake
def _(query, key, value, score, limit, scale, keep):
    dtype = torch.promote_types(query.dtype, torch.float32)
    size = key.shape[0] * key.shape[1] * _weights_kept(query, key) if keep else 0
    return query.new_empty(query.shape), query.new_empty(size, dtype=dtype)


@_backward.register_fake
def _(grad, query, key, value, score, kept, scale):
    grad_query, grad_key, grad_value = (x.new_empty(x.shape) for x in (query, key, value))
    return grad_query, grad_key, grad_value, torch.empty_like(score)


def _save(ctx, inputs, output) -> None:
    *tensors, _, ctx.scale, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _):
    return *_backward(grad, *ctx.saved_tensors, ctx.scale), None, None, None


torch.library.register_autograd(_forward, _differentiate, setup_context=_save)
