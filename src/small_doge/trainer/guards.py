"""Watches every step's loss and gradient norm, and stops a run that has gone wrong with the evidence written down."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from small_doge.trainer.gradient_norms import GradientNorms

FAILURE_FILE = "failure.json"
REMEMBERED_STEPS = 64
STEPS_BEFORE_JUDGING = 16


class StepWatch(TrainerCallback):
    """Collects loss and gradient norm of every step on the device, and judges them when the trainer logs.

    Between logs nothing is read from the device, so watching costs no synchronization of its own. A checkpoint is
    logged before it is saved, so none is ever made of a run that has already failed.

    Args:
        trainer: Whose steps are watched; used to tell which rows a step trained on.
        spike: Stop when a step's loss is this many nats above the median of the steps before; 0 never does.
    """

    def __init__(self, trainer: Any, spike: float = 0.0) -> None:
        self.trainer = trainer
        self.spike = spike
        self.recent: deque[dict[str, float]] = deque(maxlen=REMEMBERED_STEPS)
        self._micro_losses: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._gradients: list[GradientNorms | None] = []
        self._unclipped: GradientNorms | None = None

    def add_loss(self, loss: Tensor) -> None:
        """Take the share of a step's loss that one micro-batch made."""
        self._micro_losses.append(loss.detach())

    def add_gradients(self, model: nn.Module) -> None:
        """Take the gradients of a step by parameter, before clipping spreads what is no number to all of them.

        Not under fp16, whose gradients are still multiplied by the loss scale.
        """
        if not self.trainer.args.fp16:
            self._unclipped = GradientNorms.of(model)

    def end_step(self, grad_norm: Any) -> None:
        """Close a step with its gradient norm before clipping; None where the engine does not tell it."""
        loss = torch.stack(self._micro_losses).sum().float()
        self._micro_losses = []
        self._losses.append(loss)
        if isinstance(grad_norm, DTensor):  # Of parameters that FSDP2 shards.
            grad_norm = grad_norm.full_tensor()
        norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, dtype=torch.float32, device=loss.device)
        self._norms.append(norm)
        self._gradients.append(self._unclipped)
        self._unclipped = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save:
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._losses:
            return
        # The mean over the processes, so that all of them come to the same verdict.
        window = self.trainer.accelerator.reduce(torch.stack([*self._losses, *self._norms]), "mean").tolist()
        losses, norms = window[: len(self._losses)], window[len(self._losses) :]
        first = state.global_step - len(losses) + 1
        gradients = self._gradients
        self._losses, self._norms, self._gradients = [], [], []
        for step, (loss, norm, by_parameter) in enumerate(zip(losses, norms, gradients, strict=True), first):
            reason = self._verdict(loss, norm)
            self.recent.append({"step": step, "loss": loss, "grad_norm": norm})
            if reason is not None:
                self._stop(reason, step, by_parameter, args, state)

    def _verdict(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        # fp16's loss scaler finds its scale by overflowing now and then, and skips those steps.
        if not math.isfinite(norm) and not self.trainer.args.fp16:
            return f"the gradient norm became {norm}"
        if self.spike > 0 and len(self.recent) >= STEPS_BEFORE_JUDGING:
            usual = median(entry["loss"] for entry in self.recent)
            if loss > usual + self.spike:
                return f"the loss rose to {loss:.3f} from a median of {usual:.3f}"
        return None

    def _stop(
        self, reason: str, step: int, gradients: GradientNorms | None, args: TrainingArguments, state: TrainerState
    ) -> None:
        path = Path(str(args.output_dir)) / FAILURE_FILE
        rows = rows_of_step(self.trainer, step)
        failure = {
            "reason": reason,
            "step": step,
            "rows": rows,
            "gradients": None if gradients is None else gradients.summary(self.trainer.accelerator),
            "recent": [_plain(entry) for entry in self.recent],
        }
        if state.is_world_process_zero:
            path.write_text(json.dumps(failure, indent=1) + "\n")
        raise ValueError(
            f"{reason} at step {step}; its rows and gradients, and the losses and norms until then, are in {path}. "
            "Lower the learning rate, raise the warm-up or mend those rows, and start again: "
            "the run goes on from the last checkpoint, which is from before."
        )


def rows_of_step(trainer: Any, step: int) -> list[int] | None:
    """Indices into the training set of the rows that step `step` (from 1) trained on, over all processes.

    None where the data has no order of its own to look up (a stream, or a sampler of the trainer's own).
    """
    loader = trainer.get_train_dataloader()
    sampler: Any = getattr(loader, "batch_sampler", None)
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    sampler = getattr(sampler, "sampler", None)
    if sampler is None:
        return None
    rows = trainer.get_total_train_batch_size(trainer.args)
    steps = max(1, math.ceil(len(loader) / trainer.args.gradient_accumulation_steps))
    epoch, place = divmod(step - 1, steps)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    return [int(row) for row in itertools.islice(sampler, place * rows, (place + 1) * rows)]


def _plain(entry: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in entry.items()}
