"""The warm-up/stable/decay learning rate schedule (arXiv 2405.18392)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Share of the way from no learning rate to the peak, for a share of the phase in [0, 1].
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1.0 - math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(1.0 - progress),
}


class WSDScheduler(LRScheduler):
    """Raises the learning rate, holds it, then lets it fall: any checkpoint of the held phase can go on, or be
    finished.

    The curve is that of `transformers.get_wsd_schedule`. Calling `step` more often than there are steps holds the
    minimum.

    Args:
        optimizer: The optimizer whose groups' rates are set.
        warmup_steps: Steps from the minimum to the peak.
        stable_steps: Steps at the peak.
        decay_steps: Steps from the peak to the minimum.
        max_lr: The peak, for every group; each group's own learning rate if not given.
        min_lr: The lowest rate, for every group; 0 if no minimum is given.
        min_lr_ratio: The lowest rate as a share of each group's peak; not together with `min_lr`.
        warmup_type, decay_type: "linear", "cosine" or "1-sqrt".
        last_epoch: Index of the last step when resuming; -1 to start.

    Raises:
        ValueError: a negative number of steps, an unknown shape, a minimum above the peak, or both minima.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        stable_steps: int,
        decay_steps: int,
        max_lr: float | None = None,
        min_lr: float | None = None,
        min_lr_ratio: float | None = None,
        warmup_type: str = "linear",
        decay_type: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        for name, steps in (("warmup", warmup_steps), ("stable", stable_steps), ("decay", decay_steps)):
            if steps < 0:
                raise ValueError(f"{name}_steps is {steps}: a phase cannot have fewer than 0 steps.")
        for name, shape in (("warmup_type", warmup_type), ("decay_type", decay_type)):
            if shape not in SHAPES:
                raise ValueError(f"{name} is {shape!r}: choose one of {', '.join(SHAPES)}.")
        if min_lr is not None and min_lr_ratio is not None:
            raise ValueError("min_lr and min_lr_ratio are both given: give one.")
        if max_lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = max_lr
        peaks = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        if min_lr is not None and any(min_lr > peak for peak in peaks):
            raise ValueError(f"min_lr {min_lr:g} is above the peak {min(peaks):g}: lower it.")
        self.warmup_steps, self.stable_steps, self.decay_steps = warmup_steps, stable_steps, decay_steps
        self.min_lrs = [peak * min_lr_ratio if min_lr_ratio is not None else (min_lr or 0.0) for peak in peaks]
        self.warmup_type, self.decay_type = warmup_type, decay_type
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Where between the minimum (0) and the peak (1) the rate stands at `step`."""
        if step < self.warmup_steps:
            return SHAPES[self.warmup_type](step / self.warmup_steps)
        decayed = step - self.warmup_steps - self.stable_steps
        if decayed < 0:
            return 1.0
        if decayed < self.decay_steps:
            return SHAPES[self.decay_type](1.0 - decayed / self.decay_steps)
        return 0.0

    def get_lr(self) -> list[Any]:
        factor = self.factor(self.last_epoch)
        return [low + (peak - low) * factor for peak, low in zip(self.base_lrs, self.min_lrs, strict=True)]
