"""What to do when a micro-batch does not fit the device's memory: find one that does, by trying."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from small_doge.trainer.footprint import largest_divisor


def largest_that_fits(attempt: Callable[[int], None], too_many: int) -> int:
    """The largest n below `too_many` for which `attempt(n)` does not run out of memory; 0 if even one does."""
    fits, fails = 0, too_many
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            attempt(middle)
            fits = middle
        except torch.OutOfMemoryError:
            fails = middle
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
    return fits


def out_of_memory_advice(trainer: Any, length: int | None) -> str:
    """One line that names the largest micro-batch that fits, found by running forward and backward on smaller ones.

    With several processes nothing is tried (their exchange of gradients would wait for the others): at most half is
    advised.

    Args:
        trainer: Whose training step ran out of memory; its model is left without gradients.
        length: Tokens in a row of token ids; None for a stage whose batches are of another kind: nothing is tried.
    """
    args = trainer.args
    tried = args.per_device_train_batch_size
    rows = tried * args.gradient_accumulation_steps
    by_hand = "auto_micro_batch: false, " if getattr(args, "auto_micro_batch", False) else ""
    count = "one row" if tried == 1 else f"{tried} rows"
    start = f"out of memory with a micro-batch of {count}" + (f" of {length} tokens" if length else "")
    smaller = "take a smaller model or shorter rows, or set gradient_checkpointing: true."
    if tried == 1:
        return f"{start}: {smaller}"
    if args.world_size > 1 or length is None:
        less = largest_divisor(rows, tried // 2)
        return (
            f"{start}: set {by_hand}per_device_train_batch_size: {less} and gradient_accumulation_steps: "
            f"{rows // less} for the same batch (not tried: only pretraining on one process tries what fits)."
        )
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.step_graph = None  # It keeps the memory of a micro-batch.
    # Moments that no step has made yet will need their place.
    missing = [p for p in trainer.model.parameters() if p.requires_grad] if not _has_state(trainer.optimizer) else []
    kept = [torch.empty_like(p) for p in missing for _ in range(2)]

    def attempt(n: int) -> None:
        ids = torch.zeros(n, length, dtype=torch.long, device=args.device)
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids})
        try:
            loss.backward()
        finally:
            trainer.model.zero_grad(set_to_none=True)

    fits = largest_that_fits(attempt, tried)
    del kept
    if fits == 0:
        return f"{start}, and a single row does not fit either: {smaller}"
    even = largest_divisor(rows, fits)
    return (
        f"{start}: {fits} is the largest that fits (tried, forward and backward); set {by_hand}"
        f"per_device_train_batch_size: {even} and gradient_accumulation_steps: {rows // even} for the same batch."
    )


def _has_state(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "optimizer", optimizer).state)
