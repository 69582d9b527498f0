"""How two scores are compared: rounded, so that between equal keys recency decides and not floating-point noise."""

from __future__ import annotations

import torch
from torch import Tensor

SCORE_BITS = 15
"""Bits of mantissa kept when scores are compared."""

_DROPPED_BITS = 23 - SCORE_BITS


def round_score(score: Tensor) -> Tensor:
    """Round to `SCORE_BITS` bits of mantissa, for comparing scores only, never as the bias.

    Prefill and decoding compute the same score with different roundings; after this they usually agree, so that the
    tie rule (the newer key wins) decides between repeated tokens. Any shape and floating dtype; returns fp32, detached;
    -0 becomes +0.
    """
    bits = score.detach().to(torch.float32).contiguous().view(torch.int32)
    kept = (bits + (1 << (_DROPPED_BITS - 1))) & ~((1 << _DROPPED_BITS) - 1)
    return torch.where(kept == -(1 << 31), 0, kept).view(torch.float32)


def ordered_score(score: Tensor) -> Tensor:
    """Integers of 9 + `SCORE_BITS` bits (0 .. 2**24 - 1, int32) in the same order as ``round_score(score)``."""
    bits = round_score(score).view(torch.int32)
    # Two's complement order: the magnitude bits of a negative float count downwards.
    signed = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (signed >> _DROPPED_BITS) + (1 << (31 - _DROPPED_BITS))
