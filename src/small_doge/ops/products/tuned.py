"""Products whose algorithm is chosen by trial."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from small_doge.ops.products.cublaslt import algorithms

Product = Callable[[Tensor, Tensor, Tensor], None]
"""Writes left @ right, or that with right transposed, into its third argument."""

ROUNDS, CALLS = 5, 4
GAIN = 1.02
"""An algorithm must be so many times as fast as torch's choice to be taken in its place."""

ALIGNMENT = 256
"""Bytes. cuBLASLt's heuristics count on matrices that begin at a multiple of it, unless they are told otherwise."""

PATIENCE = 200
"""Calls with a shape before it is tried: about what a trial costs, for rows of many lengths have many shapes."""

_patience = PATIENCE
_seen: Counter[Any] = Counter()
_chosen: dict[Any, Product] = {}


@torch.library.custom_op("small_doge::tuned_product", mutates_args=())
def tuned_product(left: Tensor, right: Tensor, transposed: bool) -> Tensor:
    """left [M, K] @ right [K, N], or right [N, K] if it is to be transposed."""
    left, right = left.contiguous(), right.contiguous()
    out = left.new_empty(left.shape[0], right.shape[0 if transposed else 1])
    by_torch = _by_torch(transposed)
    if not left.is_cuda or not tunable(left, right):
        by_torch(left, right, out)
        return out
    key = (left.device, left.dtype, left.shape, right.shape, transposed)
    with torch.cuda.device_of(left):
        # Trials wait for the GPU, which a capture forbids.
        if key not in _chosen and _seen[key] >= _patience and not torch.cuda.is_current_stream_capturing():
            _chosen[key] = fastest(
                [by_torch, *algorithms(left, right, transposed, out)], left, right, out, _milliseconds
            )
        _seen[key] += 1
        _chosen.get(key, by_torch)(left, right, out)
    return out


@tuned_product.register_fake
def _(left: Tensor, right: Tensor, transposed: bool) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0 if transposed else 1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    left, right, ctx.transposed = inputs
    ctx.save_for_backward(left, right)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    left, right = ctx.saved_tensors
    # The gradient of `right` is a sum over all tokens: the heuristics choose well there.
    grad_right = grad.T @ left if ctx.transposed else left.T @ grad
    return tuned_product(grad, right, not ctx.transposed), grad_right, None


tuned_product.register_autograd(_differentiate, setup_context=_save)


def tunable(left: Tensor, right: Tensor) -> bool:
    """Whether cuBLASLt may be asked: neither matrix is empty, and both begin where its heuristics expect it."""
    return all(x.numel() > 0 and x.data_ptr() % ALIGNMENT == 0 for x in (left, right))


@contextmanager
def without_patience() -> Iterator[None]:
    """Within it every shape is tried at once, for it will come again and again."""
    global _patience
    _patience = 0
    try:
        yield
    finally:
        _patience = PATIENCE


def _by_torch(transposed: bool) -> Product:
    def product(left: Tensor, right: Tensor, out: Tensor) -> None:
        torch.mm(left, right.T if transposed else right, out=out)

    return product


def fastest(
    ways: list[Product], left: Tensor, right: Tensor, out: Tensor, duration: Callable[[Callable[[], None]], float]
) -> Product:
    """The fastest of the ways that give the bits of the first, which stays where none is clearly faster.

    They are tried in turns, so that a change of the GPU's clock falls on all alike, and on random matrices of the
    shapes of `left` and `right`: a new model has some of zeros, from which every algorithm makes the same bits.
    """
    generator = torch.Generator(left.device).manual_seed(0)
    left, right = (torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator) for x in (left, right))
    ways[0](left, right, out)
    expected = out.clone()
    same = ways[:1]
    for way in ways[1:]:
        way(left, right, out)
        if torch.equal(out, expected):
            same.append(way)
    times: list[list[float]] = [[] for _ in same]
    for _ in range(ROUNDS):
        for way, found in zip(same, times, strict=True):
            found.append(duration(lambda way=way: way(left, right, out)))  # type: ignore[misc]
    medians = [statistics.median(found) for found in times]
    best = min(range(len(same)), key=lambda i: medians[i])
    return same[best] if medians[0] > GAIN * medians[best] else same[0]


def _milliseconds(product: Callable[[], None]) -> float:
    """What a few calls in a row take the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        product()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
