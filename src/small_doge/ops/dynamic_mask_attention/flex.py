"""Dynamic mask attention through torch's FlexAttention: the horizon as a block mask, the score added to the logits.

A second opinion on a GPU beside our kernels: it does O(T * S) work, less the blocks of keys that are all over.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_BLOCK = 128


def flex_backend(
    query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, score_BGS: Tensor, horizon_BGS: Tensor, *, scale: float
) -> Tensor:
    """softmax(scale * q.k + score) v over the keys j <= i < horizon_j: [B, H, T, D]. Needs CUDA and a compiler."""
    return _compiled()(query_BHTD, key_BGSD, value_BGSD, score_BGS, horizon_BGS, scale)


@cache
def _compiled():
    return torch.compile(_attend, dynamic=False)


def _attend(query: Tensor, key: Tensor, value: Tensor, score: Tensor, horizon_BGS: Tensor, scale: float) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    repeat = query.shape[1] // key.shape[1]
    first = keys - queries
    end = horizon_BGS.expand(score.shape)

    def visible(b, h, i, j):
        return (i + first >= j) & (i + first < end[b, h // repeat, j])

    def biased(logit, b, h, i, j):
        return logit + score[b, h // repeat, j].to(logit.dtype)

    mask = _block_mask(end.repeat_interleave(repeat, 1), queries, visible)
    return flex_attention(query, key, value, score_mod=biased, block_mask=mask, scale=scale, enable_gqa=repeat > 1)


def _block_mask(end_BHS: Tensor, queries: int, visible) -> BlockMask:
    """Which blocks hold a visible pair, and which hold only such: from the ends, without a T x S mask."""
    keys = end_BHS.shape[-1]
    first = keys - queries
    blocks = F.pad(end_BHS, (0, -keys % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    highest, lowest = blocks.amax(-1)[:, :, None, :], blocks.amin(-1)[:, :, None, :]
    key_from = torch.arange(highest.shape[-1], device=end_BHS.device) * _BLOCK
    query_from = first + torch.arange(0, queries, _BLOCK, device=end_BHS.device)[:, None]
    query_last = (query_from + _BLOCK - 1).clamp(max=keys - 1)
    some = (key_from <= query_last) & (highest > query_from)
    whole = (key_from + _BLOCK - 1 <= query_from) & (lowest > query_last)
    part = some & ~whole
    return BlockMask.from_kv_blocks(
        part.sum(-1, dtype=torch.int32),
        part.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32),
        whole.sum(-1, dtype=torch.int32),
        whole.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32),
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(queries, keys),
    )
