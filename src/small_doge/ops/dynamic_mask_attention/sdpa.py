"""Causal attention with one bias per key through torch's fused attention: the score rides in extra head dimensions.

q.k gains the product of a constant in q and the score in k, so any fused causal kernel adds the score by itself. The
score is split into parts of the key's dtype whose sum keeps its bits. Serves the case S <= w, where nothing is masked
but the future and, where there are limits, padding and other documents.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_PARTS = {torch.bfloat16: 3, torch.float16: 2}


def sdpa_attention(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    score_BGS: Tensor,
    *,
    limit_BS: Tensor | None = None,
    scale: float,
) -> Tensor:
    """softmax(scale * q.k + score) v, causal, the queries being the last T of the S keys: [B, H, T, D].

    With limits, key j is hidden from the queries at limit_j and after, by a mask of T * S bytes; a query that sees no
    key gives 0. On a CPU half precision is computed in fp32 (torch's half-precision backward is several times slower
    there). On a GPU the score's gradient comes back in the dtype of the keys.
    """
    dtype = query_BHTD.dtype
    if query_BHTD.device.type == "cpu" and dtype in _PARTS:
        query_BHTD, key_BGSD, value_BGSD = (x.float() for x in (query_BHTD, key_BGSD, value_BGSD))
    head_size = query_BHTD.shape[-1]
    query, key = fold_score(query_BHTD, key_BGSD, score_BGS, scale)
    value = F.pad(value_BGSD, (0, key.shape[-1] - head_size))
    queries, keys = query.shape[2], key.shape[2]
    mask = blind = None
    if limit_BS is not None or 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        if limit_BS is not None:
            positions = torch.arange(keys - queries, keys, device=query.device)
            mask = (mask & (positions[:, None] < limit_BS[:, None, :]))[:, None]
            # A row without a key would be NaN: let it see everything, and take its output away again.
            blind = ~mask.any(-1, keepdim=True)
            mask = mask | blind
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and queries > 1,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if blind is not None:
        out = out.masked_fill(blind, 0.0)
    return out[..., :head_size].to(dtype)


def fold_score(query_BHTD: Tensor, key_BGSD: Tensor, score_BGS: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries and keys with extra dimensions, so that scale * q.k of the new is scale * q.k + score of the old.

    The constant in the query is the power of two nearest to 1 / scale: exact in every dtype, and it keeps the key's
    part near the score itself, far from the ends of fp16.
    """
    constant = 2.0 ** round(-math.log2(scale))
    rest = score_BGS.to(torch.promote_types(score_BGS.dtype, torch.float32)) / (scale * constant)
    part = rest.to(key_BGSD.dtype)
    columns = [part]
    for _ in range(1, _PARTS.get(key_BGSD.dtype, 1)):
        # Only the first part carries the gradient: each part alone has all of it.
        rest = rest.detach() - part.detach().to(rest.dtype)
        part = rest.to(key_BGSD.dtype)
        columns.append(part)
    # Fused kernels want a multiple of 8 on a GPU.
    padding = -(key_BGSD.shape[-1] + len(columns)) % 8 if key_BGSD.device.type != "cpu" else 0
    key = F.pad(torch.cat((key_BGSD, torch.stack(columns, -1)), -1), (0, padding))
    ones = query_BHTD.new_full((*query_BHTD.shape[:-1], len(columns)), constant)
    return F.pad(torch.cat((query_BHTD, ones), -1), (0, padding)), key
