"""The ways of running a Doge that must all give the same logits: [B, T] token ids in, [B, T, V] logits out."""

from __future__ import annotations

import torch

from small_doge import DogeCache

LENGTH = 64


def text(batch: int = 2, length: int = LENGTH, vocabulary: int = 60) -> torch.Tensor:
    ids = torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))
    ids[:, 5:9] = ids[:, 1:5]
    ids[:, 30:40] = 7
    return ids


def distinct_text() -> torch.Tensor:
    """Without ties, where single precision may choose other keys than double; 200 tokens."""
    return torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(s))[:LENGTH] for s in (0, 1)])


def plain(model, ids):
    return model(ids, use_cache=False).logits


def trained(model, ids):
    model.train()
    return model(ids).logits


def prefilled(model, ids):
    return model(ids, past_key_values=DogeCache(model.config)).logits


def prefilled_in_chunks(model, ids):
    cache = DogeCache(model.config)
    return torch.cat([model(chunk, past_key_values=cache).logits for chunk in ids.split([5, 20, 1, 9, 29], 1)], 1)


def decoded(model, ids):
    cache = DogeCache(model.config)
    return torch.cat([model(token, past_key_values=cache).logits for token in ids.split(1, 1)], 1)


def prefilled_then_decoded(model, ids):
    cache = DogeCache(model.config)
    start = [model(ids[:, :20], past_key_values=cache).logits]
    return torch.cat(start + [model(token, past_key_values=cache).logits for token in ids[:, 20:].split(1, 1)], 1)


def packed(model, ids):
    """The row between two others, in one row of three documents."""
    before, after = ids[:, :13], ids[:, 7:30]
    row = torch.cat((before, ids, after), 1)
    positions = torch.cat([torch.arange(part.shape[1], device=ids.device) for part in (before, ids, after)])[None]
    return model(row, position_ids=positions).logits[:, 13 : 13 + ids.shape[1]]


def padded_on_the_left(model, ids):
    return padded(model, ids, decode=False)


def padded_on_the_left_then_decoded(model, ids):
    return padded(model, ids, decode=True)


def padded(model, ids, decode):
    """Row 0 with 9 places of padding before it, row 1 with none and so 9 tokens more, which are cut off again."""
    extra = ids[1:, :9]
    rows = torch.cat((torch.cat((torch.full_like(extra, 2), ids[:1]), 1), torch.cat((ids[1:], extra), 1)))
    mask = torch.ones_like(rows)
    mask[0, :9] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if decode:
        cache = DogeCache(model.config)
        logits = [model(rows[:, :12], mask[:, :12], positions[:, :12], cache).logits]
        for i in range(12, rows.shape[1]):
            logits.append(model(rows[:, i : i + 1], mask[:, : i + 1], positions[:, i : i + 1], cache).logits)
        logits = torch.cat(logits, 1)
    else:
        logits = model(rows, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return torch.stack((logits[0, 9:], logits[1, :-9]))


WAYS = [
    trained,
    prefilled,
    prefilled_in_chunks,
    decoded,
    prefilled_then_decoded,
    packed,
    padded_on_the_left,
    padded_on_the_left_then_decoded,
]
