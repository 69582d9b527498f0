"""The attention weights themselves, T x S, for looking at; no fast backend ever forms them."""

from __future__ import annotations

import torch
from torch import Tensor

from small_doge.ops.dynamic_mask_attention.naive import naive_mask


def attention_weights(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    score_BGS: Tensor,
    *,
    keep_window: int,
    limit_BS: Tensor | None = None,
    scale: float,
) -> Tensor:
    """softmax(scale * q.k + score) over the keys that each query sees: [B, H, T, S] in fp32; a row that sees none is 0."""
    repeat = query_BHTD.shape[1] // key_BGSD.shape[1]
    mask = naive_mask(score_BGS, query_BHTD.shape[2], keep_window, limit_BS).repeat_interleave(repeat, 1)
    key = key_BGSD.float().repeat_interleave(repeat, 1)
    bias = score_BGS.float().repeat_interleave(repeat, 1)[:, :, None, :]
    logits = scale * (query_BHTD.float() @ key.transpose(-1, -2)) + bias
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(~mask, 0.0)
