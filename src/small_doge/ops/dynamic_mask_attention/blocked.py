"""Dynamic mask attention in O(T * w) work, in plain torch: the CPU path, and the mathematics of the sparse kernel.

The queries go by in blocks. Before a block, the keys still alive (at most w for each key/value head) are known by
index; the block's queries look at these and at the block's own keys, and nothing else. After it, the keys whose
horizon has passed leave the list. Memory is O(T): the weights of one block exist at a time, and backward computes
them again from the saved log-sum-exp.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def blocked_attention(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    score_BGS: Tensor,
    horizon_BGS: Tensor,
    *,
    keep_window: int,
    scale: float,
) -> Tensor:
    """softmax(scale * q.k + score) v over the keys j with j <= i < horizon_j: [B, H, T, D].

    ``horizon_BGS`` comes from `retention_horizon` ([B, 1, S] serves every head). Any device and floating dtype; half
    precision is computed in fp32. One row of the batch is computed at a time, so that it never depends on the others.
    """
    block = max(32, min(256, keep_window // 4))
    return _forward(query_BHTD, key_BGSD, value_BGSD, score_BGS, horizon_BGS, scale, block)[0]


@torch.library.custom_op("small_doge::blocked_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor, horizon: Tensor, scale: float, block: int
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    logsumexp = torch.empty(query.shape[:3], dtype=dtype, device=query.device)
    for row in range(query.shape[0]):
        for part in _blocks(query, key, score, horizon, row, scale, block):
            top = part.logits.amax(-1, keepdim=True)
            # A query that sees no key has top = -inf: subtract 0 there, and its weights are all 0.
            weights = (part.logits - top.masked_fill(top == -torch.inf, 0)).exp()
            total = weights.sum(-1, keepdim=True)
            found = weights @ part.take(value[row]).to(dtype) / total.masked_fill(total == 0, 1)
            out[row, :, part.span] = found.view(query.shape[1], -1, query.shape[-1]).to(query.dtype)
            # +inf there makes backward's weights exp(-inf - inf) = 0.
            lse = torch.where(total == 0, torch.inf, top + total.log())
            logsumexp[row, :, part.span] = lse.view(query.shape[1], -1)
    return out, logsumexp


@torch.library.custom_op("small_doge::blocked_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    horizon: Tensor,
    scale: float,
    block: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = logsumexp.dtype
    groups, head_size = key.shape[1], key.shape[3]
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    grad_key, grad_value = torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)
    grad_score = torch.zeros_like(score, dtype=dtype)
    delta = (grad.to(dtype) * out.to(dtype)).sum(-1)
    for row in range(query.shape[0]):
        for part in _blocks(query, key, score, horizon, row, scale, block):
            g = grad[row, :, part.span].to(dtype).reshape(groups, -1, head_size)
            weights = (part.logits - logsumexp[row, :, part.span].reshape(groups, -1, 1)).exp()
            part.give(grad_value[row], weights.transpose(1, 2) @ g)
            grad_weights = g @ part.take(value[row]).to(dtype).transpose(1, 2)
            grad_logits = weights * (grad_weights - delta[row, :, part.span].reshape(groups, -1, 1))
            part.give(grad_score[row], grad_logits.sum(1))
            part.give(grad_key[row], grad_logits.transpose(1, 2) @ part.query * scale)
            found = grad_logits @ part.key * scale
            grad_query[row, :, part.span] = found.view(query.shape[1], -1, head_size).to(query.dtype)
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), grad_score.to(score.dtype)


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor, horizon: Tensor, scale: float, block: int
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=dtype)


@_backward.register_fake
def _(
    grad: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    horizon: Tensor,
    scale: float,
    block: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        score.new_empty(score.shape),
    )


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale, ctx.block = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _):
    query, key, value, score, horizon, out, logsumexp = ctx.saved_tensors
    grads = _backward(grad, out, logsumexp, query, key, value, score, horizon, ctx.scale, ctx.block)
    return *grads, None, None, None


torch.library.register_autograd(_forward, _differentiate, setup_context=_save)


class _Block:
    """One block of queries of one row: which keys it looks at, and its masked logits."""

    def __init__(self, span: slice, index_GL: Tensor, query: Tensor, key: Tensor, logits: Tensor):
        self.span = span
        self.index_GL = index_GL
        self.query = query
        self.key = key
        self.logits = logits

    def take(self, source: Tensor) -> Tensor:
        """The block's keys out of [G, S] or [G, S, D]."""
        return _take(source, self.index_GL)

    def give(self, target: Tensor, values: Tensor) -> None:
        """Add to the block's keys. Unused places of the list point at key 0 and carry 0, so the sum has one order."""
        index = self.index_GL if target.dim() == 2 else self.index_GL[..., None].expand_as(values)
        target.scatter_add_(1, index, values)


def _take(source: Tensor, index_GL: Tensor) -> Tensor:
    if source.dim() == 2:
        return source.gather(1, index_GL)
    return source.gather(1, index_GL[..., None].expand(-1, -1, source.shape[-1]))


def _blocks(
    query: Tensor, key: Tensor, score: Tensor, horizon: Tensor, row: int, scale: float, block: int
) -> Iterator[_Block]:
    """The blocks of one row in order, each with the keys alive at its start and its own."""
    heads, queries, head_size = query.shape[1:]
    groups, keys = key.shape[1:3]
    dtype = torch.promote_types(query.dtype, torch.float32)
    ends = horizon[row].to(torch.int64).expand(groups, keys)
    first = keys - queries
    cached = torch.arange(first, device=key.device).expand(groups, first)
    alive_GL, alive_ends = _still_alive(cached, ends[:, :first], first)
    for start in range(first, keys, block):
        stop = min(start + block, keys)
        position = torch.arange(start, stop, device=key.device)
        index = torch.cat((alive_GL, position.expand(groups, -1)), 1)
        end = torch.cat((alive_ends, ends[:, start:stop]), 1)
        span = slice(start - first, stop - first)
        block_query = query[row, :, span].to(dtype).reshape(groups, -1, head_size)
        block_key = _take(key[row], index).to(dtype)
        logits = torch.baddbmm(
            _take(score[row], index).to(dtype)[:, None, :], block_query, block_key.transpose(1, 2), alpha=scale
        )
        visible = (index[:, None, :] <= position[:, None]) & (position[:, None] < end[:, None, :])
        logits.view(groups, heads // groups, stop - start, -1).masked_fill_(~visible[:, None], -torch.inf)
        yield _Block(span, index, block_query, block_key, logits)
        alive_GL, alive_ends = _still_alive(index, end, stop)


def _still_alive(index_GL: Tensor, end_GL: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """The keys whose horizon lies beyond the position, each head's list as long as the longest, filled up with 0."""
    alive = end_GL > position
    count = int(alive.sum(1).max()) if alive.shape[1] else 0
    order = (~alive).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    index, end, alive = (x.gather(1, order) for x in (index_GL, end_GL, alive))
    return index.masked_fill(~alive, 0), end.masked_fill(~alive, 0)
