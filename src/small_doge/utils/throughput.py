"""Tokens per second and time left, from counts and a clock; the one place where they are computed."""

from __future__ import annotations

import time
from collections.abc import Callable


class ThroughputMeter:
    """Measures a rate over windows, and foretells the end from the whole time measured.

    Args:
        clock: Seconds that never run backwards; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int, int] | None = None
        self._last: tuple[float, int, int] | None = None
        self.tokens_per_second: float | None = None
        self.seconds_per_step: float | None = None

    def start(self, tokens: int, step: int) -> None:
        """Begin to measure at these counts (not zero after a resume)."""
        self._first = self._last = (self._clock(), tokens, step)

    def update(self, tokens: int, step: int) -> None:
        """Take the counts now; the rate is over the time since the last call, the pace since the start."""
        assert self._first is not None and self._last is not None, "start() comes first"
        now = self._clock()
        elapsed = now - self._last[0]
        if elapsed > 0:
            self.tokens_per_second = (tokens - self._last[1]) / elapsed
        if step > self._first[2]:
            self.seconds_per_step = (now - self._first[0]) / (step - self._first[2])
        self._last = (now, tokens, step)

    def seconds_left(self, total_steps: int) -> float | None:
        """Seconds to `total_steps` at the pace since the start; None before the first step."""
        if self.seconds_per_step is None or self._last is None:
            return None
        return max(0, total_steps - self._last[2]) * self.seconds_per_step

    @property
    def average_tokens_per_second(self) -> float | None:
        """Tokens per second since the start."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


def clock_time(seconds: float | None) -> str:
    """Seconds as 1:02:03 or 2:03; "?" where unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
