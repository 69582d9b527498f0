"""The definition of dynamic mask attention: a T x T mask, written to be read.

Names carry shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head size.
The queries are the last T of the S keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from small_doge.ops.dynamic_mask_attention.scores import round_score


def naive_mask(score_BGS: Tensor, queries: int, keep_window: int, limit_BS: Tensor | None = None) -> Tensor:
    """Which keys a query sees: of the keys up to its own, the ``keep_window`` of highest score, ties to the newer.

    Args:
        score_BGS: one score per key; compared after `round_score`.
        queries: T; the queries stand at the last T of the S positions.
        keep_window: w, how many keys a query sees at most.
        limit_BS: the position after the last query that may see the key (the end of its document; 0: padding).

    Returns:
        bool [B, G, T, S].
    """
    batch, groups, keys = score_BGS.shape
    key_position = torch.arange(keys, device=score_BGS.device)
    query_position = key_position[keys - queries :]
    eligible = (key_position[None, :] <= query_position[:, None])[None]
    if limit_BS is not None:
        eligible = eligible & (query_position[:, None] < limit_BS[:, None, :])
    # A stable ascending sort, read backwards, puts the highest score first and the newer of two equal ones first.
    best_first = round_score(score_BGS).argsort(dim=-1, stable=True).flip(-1)[:, :, None, :]
    best_first = best_first.expand(batch, groups, queries, keys)
    eligible = eligible[:, None].expand(batch, groups, queries, keys)
    ranked = eligible.gather(-1, best_first)
    kept = ranked & (ranked.cumsum(-1) <= keep_window)
    return torch.zeros_like(kept).scatter(-1, best_first, kept)


def attention_weights(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    score_BGS: Tensor,
    *,
    keep_window: int,
    limit_BS: Tensor | None = None,
    scale: float,
) -> Tensor:
    """softmax(scale * q.k + score) over the keys of `naive_mask`, 0 elsewhere: [B, H, T, S], at least fp32."""
    dtype = torch.promote_types(query_BHTD.dtype, torch.float32)
    repeat = query_BHTD.shape[1] // key_BGSD.shape[1]
    mask = naive_mask(score_BGS, query_BHTD.shape[2], keep_window, limit_BS).repeat_interleave(repeat, 1)
    key = key_BGSD.to(dtype).repeat_interleave(repeat, 1)
    bias = score_BGS.to(dtype).repeat_interleave(repeat, 1)[:, :, None, :]
    logits = scale * (query_BHTD.to(dtype) @ key.transpose(-1, -2)) + bias
    # The lowest finite number and not -inf: a row with no key must stay free of NaN, in the gradient too.
    return logits.masked_fill(~mask, torch.finfo(dtype).min).softmax(-1).masked_fill(~mask, 0.0)


def naive_attention(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    score_BGS: Tensor,
    *,
    keep_window: int,
    limit_BS: Tensor | None = None,
    scale: float,
) -> Tensor:
    """The weights of `attention_weights` times the values: [B, H, T, D]; a query that sees no key gives 0.

    Any floating dtype, with half precision computed in fp32. Memory and work are O(T * S).
    Source: arXiv 2412.11834 (the dynamic mask), with the tie rule of this package.
    """
    weights = attention_weights(
        query_BHTD, key_BGSD, score_BGS, keep_window=keep_window, limit_BS=limit_BS, scale=scale
    )
    value = value_BGSD.to(weights.dtype).repeat_interleave(query_BHTD.shape[1] // value_BGSD.shape[1], 1)
    return (weights @ value).to(query_BHTD.dtype)
