"""What a termination signal does: the step at hand is finished and saved, and the process says how to go on."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnSignal(TrainerCallback):
    """On SIGTERM, as schedulers and `kill` send it, ends the run with a checkpoint instead of in the middle of a step.

    One process stops after its step; several agree on it at their next log, so that none waits for another.

    Args:
        trainer: Whose processes have to agree.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.received = False
        self.stopped = False
        self._before: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.received and args.world_size == 1:
            self._stop(state, control)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            flag = torch.tensor(float(self.received), device=args.device)
            if self.trainer.accelerator.reduce(flag, "sum").item() > 0:
                self._stop(state, control)

    def _stop(self, state: TrainerState, control: TrainerControl) -> None:
        if state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
