"""Intervals for shares and means."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, 1927), which stays inside [0, 1] at small n."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a mean (normal approximation)."""
    n = len(values)
    assert n > 0
    mean = sum(values) / n
    half = z * math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, n - 1) / n)
    return mean - half, mean + half


def paired_difference_interval(
    before: Sequence[bool], after: Sequence[bool], z: float = 1.959964
) -> tuple[float, float]:
    """95 % interval of the change of a share, measured on the same items before and after (normal approximation)."""
    assert len(before) == len(after)
    return mean_interval([int(a) - int(b) for a, b in zip(after, before, strict=True)], z)
