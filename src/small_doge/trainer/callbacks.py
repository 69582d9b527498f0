"""What a run shows and writes down while it trains, and when it stops itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from small_doge.utils.hardware import device_name, mfu
from small_doge.utils.throughput import ThroughputMeter, clock_time

LOG_FILE = "log.jsonl"


def tokens_seen(state: TrainerState, logs: dict[str, Any] | None = None) -> int:
    """Tokens trained on so far: TRL counts them in its logs, transformers in its state."""
    return int((logs or {}).get("num_tokens") or state.num_input_tokens_seen)


class TokenCount(TrainerCallback):
    """Keeps the tokens that TRL's SFT and DPO trainers count in the state that checkpoints hold: by themselves they
    count anew from each resume.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._total_train_tokens = state.num_input_tokens_seen

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.num_input_tokens_seen = self.trainer._total_train_tokens


class ProgressReport(TrainerCallback):
    """A progress bar (a line now and then where there is no terminal) and `log.jsonl`: loss, gradient norm, learning
    rate, held-out bits per byte, tokens/s, MFU and time left.

    It stands before the callbacks of TensorBoard, trackio and wandb, and adds its figures to what they log.

    Args:
        stage: Name of the stage.
        flops_per_token: Training FLOPs of a token, for the MFU; not shown if None.
        bytes_per_token: Bytes of text that a held-out token stands for, to give its loss in bits per byte.
        console: Where to print; standard error if not given.
    """

    def __init__(
        self,
        stage: str,
        flops_per_token: float | None = None,
        bytes_per_token: float | None = None,
        console: Console | None = None,
    ) -> None:
        self.stage = stage
        self.flops_per_token = flops_per_token
        self.bytes_per_token = bytes_per_token
        self.held_out: float | None = None
        self.console = console or Console(stderr=True)
        self.meter = ThroughputMeter()
        self._progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.meter.start(tokens_seen(state), state.global_step)
        self._drop_lines_after(Path(str(args.output_dir)) / LOG_FILE, state)
        if not state.is_world_process_zero:
            return
        if self.console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            )
            self._progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console)
            self._task = self._progress.add_task(
                self.stage, total=state.max_steps, completed=state.global_step, note=""
            )
            self._progress.start()
        else:
            self.console.print(f"{self.stage}: step {state.global_step} of {state.max_steps}", highlight=False)

    @staticmethod
    def _drop_lines_after(path: Path, state: TrainerState) -> None:
        # A run that was killed after its last checkpoint wrote lines that the resumed one writes again.
        if not state.is_world_process_zero or not path.exists():
            return
        lines = [line for line in path.read_text().splitlines() if line]
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step] if state.global_step else []
        path.write_text("".join(line + "\n" for line in kept))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.meter.update(tokens_seen(state, logs), state.global_step)
            logs["tokens_per_second"] = self.meter.tokens_per_second or 0.0
            if self.flops_per_token:
                share = mfu(self.flops_per_token, logs["tokens_per_second"], device_name(args.device), args.world_size)
                if share is not None:
                    logs["mfu"] = share
            if args.device.type == "cuda":
                logs["peak_memory_gib"] = torch.cuda.max_memory_allocated(args.device) / 2**30
            self._show(logs, state)
        if "eval_loss" in logs and self.bytes_per_token:
            self.held_out = logs["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.bytes_per_token
            # The pause is no training time.
            self.meter.start(tokens_seen(state, logs), state.global_step)
        numbers = {k: v for k, v in logs.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        path = Path(str(args.output_dir)) / LOG_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in numbers.items()}
        with open(path, "a") as file:
            file.write(json.dumps({"step": state.global_step, **record}) + "\n")

    def _show(self, numbers: dict[str, Any], state: TrainerState) -> None:
        notes = [f"loss {numbers['loss']:.3f}"]
        if "reward" in numbers:
            notes.append(f"reward {numbers['reward']:.3f}")
        if self.held_out is not None:
            notes.append(f"held-out {self.held_out:.3f} bits/byte")
        if isinstance(numbers.get("grad_norm"), float):
            notes.append(f"grad norm {numbers['grad_norm']:.2f}")
        if "learning_rate" in numbers:
            notes.append(f"LR {numbers['learning_rate']:.2e}")
        notes.append(f"{numbers['tokens_per_second']:,.0f} tokens/s")
        if self.flops_per_token:
            notes.append(f"MFU {numbers['mfu']:.1%}" if "mfu" in numbers else "MFU n/a")
        notes.append(f"{clock_time(self.meter.seconds_left(state.max_steps))} left")
        note = ", ".join(notes)
        if self._progress is not None:
            self._progress.update(self._task, note=note)
        else:
            line = f"{self.stage}: step {state.global_step} of {state.max_steps}: {note}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
