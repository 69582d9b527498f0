"""From attention masks and position ids to what dynamic mask attention takes: one integer per key."""

from __future__ import annotations

import torch
from torch import Tensor


def new_tokens_mask(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """[B, T] bool of the `length` new tokens that are not padding; None where nothing is masked.

    While torch.compile traces, the mask's values are unknown and it is kept as given.

    Raises:
        ValueError: the mask is not two-dimensional.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask has {attention_mask.dim()} dimensions: Doge makes its own mask, "
            "pass [batch, length] or none."
        )
    valid = attention_mask[:, -length:].bool()
    if torch.compiler.is_compiling():
        return valid
    return None if bool(valid.all()) else valid


def padding_limits(valid: Tensor | None) -> Tensor | None:
    """Index [B, T] after the last query that may see each key, 0 for padding; None for plain causal.

    Padding on the right alone needs no limit: no real query comes after it.
    """
    if valid is None:
        return None
    if not torch.compiler.is_compiling() and not bool((valid[:, 1:] & ~valid[:, :-1]).any()):
        return None
    return valid.long() * valid.shape[1]


def document_limits(position_ids: Tensor, batch: int) -> Tensor | None:
    """Index [B, T] of the end of each token's document, where a restart of the positions begins a new one.

    None where no position restarts: one document a row. While torch.compile traces, that is unknown and the ends are
    always given.
    """
    restarts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if not torch.compiler.is_compiling() and not bool(restarts.any()):
        return None
    length = position_ids.shape[1]
    ends = torch.arange(1, length, device=position_ids.device).where(restarts, length)
    last = torch.full_like(ends[:, :1], length)
    return torch.cat((ends, last), 1).flip(1).cummin(1).values.flip(1).expand(batch, length)
