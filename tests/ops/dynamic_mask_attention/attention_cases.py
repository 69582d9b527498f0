"""Problems that the tests of this folder share."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("output", "query", "key", "value", "score")


def draw_scores(kind: str, batch: int, groups: int, keys: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scores of one kind: each is hard for some way of keeping the highest w."""
    shape = (batch, groups, keys)
    position = torch.arange(keys).expand(shape)
    noise = torch.rand(shape)
    scores = {
        "random": noise.mul(3).exp(),
        "rising": noise.sort(-1).values,
        "falling": noise.sort(-1, descending=True).values,
        "constant": torch.ones(shape),
        "of four values": (noise * 4).floor(),
        "of both signs": torch.randn(shape),
        "sawtooth": position % 7 + 0.01 * position,
        "two heaps": torch.where(position % 2 == 0, position, -position),
        "high start": torch.where(position < keys // 3, 10 + noise, noise),
        # Equal once rounded, unequal before.
        "equal but for noise": 1.0 + noise * 2.0**-20,
        "signed zeros": torch.where(noise < 0.5, 0.0, -0.0),
        "infinite": torch.where(noise < 0.1, torch.inf, noise),
    }
    return scores[kind].to(dtype)


SCORE_KINDS = (
    "random",
    "rising",
    "falling",
    "constant",
    "of four values",
    "of both signs",
    "sawtooth",
    "two heaps",
    "high start",
    "equal but for noise",
    "signed zeros",
    "infinite",
)


def draw_limits(kind: str, batch: int, keys: int) -> Tensor | None:
    """Limits of one kind: the end of each key's document, 0 for padding."""
    if kind == "whole":
        return None
    limit = torch.full((batch, keys), keys)
    if kind in ("packed", "packed and padded"):
        for stop in (keys * 4 // 5, keys // 3, keys // 3 - 3, 2):
            limit[0, :stop] = stop
        limit[-1, : keys // 2] = keys // 2
    if kind in ("padded", "packed and padded"):
        limit[0, : keys // 8] = 0
        limit[-1, -(keys // 8) :] = 0
        limit[-1, keys // 4] = 0
    return limit


LIMIT_KINDS = ("whole", "packed", "padded", "packed and padded")


def draw_inputs(
    heads: int,
    groups: int,
    queries: int,
    keys: int,
    head_size: int = 16,
    dtype: torch.dtype = torch.float64,
    scores: str = "of four values",
    batch: int = 2,
) -> list[Tensor]:
    """Queries, keys, values and scores that want gradients, laid out as a model's projections give them."""
    score = draw_scores(scores, batch, groups, keys, torch.promote_types(dtype, torch.float32))
    tensors = [
        torch.randn(batch, queries, heads, head_size).transpose(1, 2).to(dtype),
        torch.randn(batch, keys, groups, head_size).transpose(1, 2).to(dtype),
        torch.randn(batch, keys, groups, head_size).transpose(1, 2).to(dtype),
        score.transpose(1, 2).contiguous().transpose(1, 2),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def with_gradients(attend, inputs: list[Tensor], seed: int = 1) -> list[Tensor]:
    """The output and the four gradients, for a fixed random gradient of the output."""
    out = attend(*inputs)
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, grad)]


def relative_errors(found: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """|found - expected| / |expected| of each; NaN stays NaN. A gradient that is 0 throughout is compared as it is."""
    errors = {}
    for name, f, e in zip(NAMES, found, expected, strict=True):
        f, e = f.detach().double(), e.detach().double()
        norm = e.norm()
        errors[name] = float((f - e).norm() / (norm if norm > 1e-6 else 1.0))
    return errors
