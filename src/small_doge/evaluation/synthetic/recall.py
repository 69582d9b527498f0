"""Recall tasks in token ids: multi-query associative recall, and a needle in a haystack.

Both ask a model to repeat what stood beside a key earlier in the sequence; nothing but attention to that place can
tell. Examples come in any number from a seeded generator, so training never sees one twice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RecallBatch(NamedTuple):
    """`ids` [B, T]; the positions [B, Q] that are asked, and the token [B, Q] that is right after each."""

    ids: Tensor
    asked: Tensor
    answers: Tensor


def multi_query_recall(
    batch: int, length: int, pairs: int, vocab_size: int, generator: torch.Generator, power: float = 0.01
) -> RecallBatch:
    """MQAR (arXiv 2312.04927, appendix E): key and value pairs, then every key once more among random tokens.

    Keys are drawn without repetition from the lower half of the vocabulary, values from the upper half. The distance
    from the end of the pairs to a query is drawn without repetition with weight distance ** (power - 1), which puts
    most queries near, as the paper does. Tensors lie on the generator's device.

    Raises:
        ValueError: the pairs and their queries do not fit into the length, or the keys into the vocabulary.
    """
    room = length - 2 * pairs
    if not 0 < pairs <= room:
        raise ValueError(f"{pairs} pairs and their queries need {3 * pairs} tokens: raise the length above {length}.")
    if pairs > vocab_size // 2:
        raise ValueError(f"{pairs} keys need a vocabulary of {2 * pairs}: raise vocab_size above {vocab_size}.")
    device = generator.device
    half = vocab_size // 2
    # Even weights: a draw without repetition.
    even = torch.ones(batch, half, device=device)
    keys = torch.multinomial(even, pairs, generator=generator)
    values = half + torch.multinomial(even, pairs, generator=generator)
    ids = torch.randint(vocab_size, (batch, length), generator=generator, device=device)
    ids[:, : 2 * pairs : 2], ids[:, 1 : 2 * pairs : 2] = keys, values
    near = torch.arange(1, room + 1, device=device, dtype=torch.float32) ** (power - 1)
    asked = 2 * pairs + torch.multinomial(near.expand(batch, room), pairs, generator=generator)
    return RecallBatch(ids.scatter_(1, asked, keys), asked, values)


def needle_recall(
    batch: int, length: int, vocab_size: int, generator: torch.Generator, needle: int = 4, depth: float | None = None
) -> RecallBatch:
    """A needle of a key and `needle` value tokens in a haystack of random tokens; at the end the key stands again.

    Token 0 marks the key, both times, and appears nowhere else; the answer is spelled out after the second key, so
    each of its tokens is asked with those before it in view.

    Args:
        depth: Where the needle stands, from 0 (the beginning) to 1 (just before the question); drawn if left out.

    Raises:
        ValueError: the needle and the question do not fit into the length, or the depth is not in [0, 1].
    """
    room = length - 2 * (2 + needle)
    if room < 0:
        raise ValueError(f"a needle of {needle} tokens needs a length of {2 * (2 + needle)}: raise {length}.")
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}: give a share from 0 to 1.")
    device = generator.device
    ids = torch.randint(1, vocab_size, (batch, length), generator=generator, device=device)
    if depth is None:
        start = torch.randint(room + 1, (batch,), generator=generator, device=device)
    else:
        start = torch.full((batch,), round(depth * room), device=device)
    marked = torch.randint(1, vocab_size, (batch, 2 + needle), generator=generator, device=device)
    marked[:, 0] = 0
    ids.scatter_(1, start[:, None] + torch.arange(2 + needle, device=device), marked)
    ids[:, -(2 + needle) :] = marked
    asked = torch.arange(length - 1 - needle, length - 1, device=device).expand(batch, needle)
    return RecallBatch(ids, asked, marked[:, 2:])
