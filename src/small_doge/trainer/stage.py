"""How a stage trains: our optimizer, schedule and checkpoints in a library's trainer, and one way to run and end it."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback

from small_doge.models.doge.accounting_doge import training_flops_per_token
from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.trainer.adapters import refuse_sharded_adapter
from small_doge.trainer.callbacks import ProgressReport
from small_doge.trainer.checkpoints import AtomicCheckpoints, last_checkpoint, save_finished, warn_of_little_space
from small_doge.trainer.continuation import StablePoint, take_over
from small_doge.trainer.expert_load import ExpertLoadLog
from small_doge.trainer.guards import StepWatch
from small_doge.trainer.interruption import StopOnSignal
from small_doge.trainer.memory import out_of_memory_advice
from small_doge.trainer.optimizers import Muon, muon_groups
from small_doge.trainer.run_record import RunRecord, write_report
from small_doge.trainer.unfreezing import StagedUnfreezing
from small_doge.utils.scheduler import WSDScheduler

logger = logging.getLogger(__name__)


class StageTrainer(AtomicCheckpoints):
    """Mixin for transformers' and TRL's trainers: our optimizer, our schedule, whole checkpoints, watched steps."""

    args: Any
    model: Any
    optimizer: Optimizer | None
    lr_scheduler: Any
    state: Any
    control: Any
    watch: StepWatch | None = None
    continued: StablePoint | None = None

    def create_optimizer(self, model: Any = None) -> Optimizer:
        if self.optimizer is None:
            self.optimizer = self._new_optimizer(model or self.model)
            if self.continued is not None and self.continued.rates is not None:
                if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # type: ignore[attr-defined]
                    raise ValueError(
                        "continue_from brings an optimizer's whole moments, which FSDP and DeepSpeed shard: go on "
                        "under single_gpu or ddp, or from the weights alone with model_name_or_path."
                    )
                take_over(self.optimizer, self.continued)
        return self.optimizer

    def _new_optimizer(self, model: Any) -> Optimizer:
        args = self.args
        if args.optimizer == "adamw":
            optimizer = super().create_optimizer(model)  # type: ignore[misc]
            if self.is_deepspeed_enabled:  # type: ignore[attr-defined]
                for group in optimizer.param_groups:
                    group["params"] = in_flattening_order(group["params"])
            return optimizer
        if args.optimizer != "muon":
            raise ValueError(f"optimizer is {args.optimizer!r}: choose adamw or muon.")
        if self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            raise ValueError(
                "optimizer: muon needs whole matrices, which DeepSpeed's ZeRO flattens: "
                "use the ddp or fsdp config of recipes/accelerate_configs, or optimizer: adamw."
            )
        groups = muon_groups(model, args.muon_learning_rate, args.learning_rate, args.weight_decay)
        betas = (args.adam_beta1, args.adam_beta2)
        return Muon(groups, momentum=args.muon_momentum, betas=betas, eps=args.adam_epsilon)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        args = self.args
        if args.lr_scheduler_type != "warmup_stable_decay":
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        if self.lr_scheduler is None:
            warmup = args.get_warmup_steps(num_training_steps)
            decay = args.decay_steps if args.decay_steps >= 1 else args.decay_steps * num_training_steps
            decay = num_training_steps if getattr(args, "decay", False) else round(decay)
            decay = min(decay, num_training_steps - warmup)
            self.lr_scheduler = WSDScheduler(
                optimizer or self.optimizer,  # type: ignore[arg-type]
                warmup_steps=warmup,
                stable_steps=num_training_steps - warmup - decay,
                decay_steps=decay,
                min_lr_ratio=args.min_lr_ratio,
                decay_type=args.decay_type,
            )
        return self.lr_scheduler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers looks at the number of steps after a step only, and would train one more than asked for when a
        # run was killed between its last checkpoint and its end.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied head is no missing weight: it is saved as the embedding.
        missing = [key for key in load_result.missing_keys if key not in self.model.all_tied_weights_keys]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self.watch is not None:
            self.watch.add_loss(loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.watch is not None:
            self.watch.add_gradients(model)
        return super()._clip_grad_norm(model)  # type: ignore[misc]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if self.watch is not None and grad_norm is None:  # Nothing was clipped.
            self.watch.add_gradients(model)
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        if self.watch is not None:
            self.watch.end_step(norm)
        return norm


def in_flattening_order(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those that are no multiple of 16 bytes last, A of the few heads above all.

    ZeRO lays a group's parameters side by side in one buffer, in half precision. What stands behind an odd one is not
    aligned as compiled kernels expect of a weight, and the GPU stops at a misaligned address.
    """
    return sorted(parameters, key=lambda parameter: parameter.numel() % 8 > 0)


def attach_callbacks(trainer: Any, stage: str, length: int, bytes_per_token: float | None = None) -> None:
    """Put our progress report in the place of transformers', and watch the run for failures and signals.

    Args:
        trainer: A `StageTrainer`.
        stage: Name shown beside the progress bar.
        length: Tokens in a row, for the FLOPs of a token.
        bytes_per_token: Of the held-out rows, to show their loss in bits per byte.
    """
    for replaced in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(replaced)
    config = trainer.model.config
    flops = training_flops_per_token(config, length) if isinstance(config, DogeConfig) else None
    # transformers replaces a loss that is no number by the mean of those before it; we want to see it.
    trainer.args.logging_nan_inf_filter = False
    trainer.watch = StepWatch(trainer, getattr(trainer.args, "loss_spike", 0.0))
    for callback in (trainer.watch, StopOnSignal(trainer), RunRecord()):
        trainer.add_callback(callback)
    # First of all, so that TensorBoard and its like log what it adds.
    trainer.callback_handler.callbacks.insert(0, ProgressReport(stage, flops, bytes_per_token))
    if getattr(config, "is_moe", False):
        trainer.callback_handler.callbacks.insert(0, ExpertLoadLog())
    if trainer.args.staged_unfreezing:
        trainer.add_callback(StagedUnfreezing(tuple(trainer.args.staged_unfreezing)))


def resume_point(args: Any) -> str | None:
    """The checkpoint to go on from, or None for a fresh start.

    Raises:
        ValueError: `resume: false` with checkpoints in output_dir, which a fresh start would mix with its own.
    """
    last = last_checkpoint(args.output_dir)
    if last is not None and not args.resume:
        raise ValueError(
            f"{args.output_dir} holds {last}: name another output_dir, move it away, or drop `resume: false`."
        )
    if last is not None:
        logger.warning("going on from %s", last)
    return last


def run_to_end(trainer: Any, tokenizer: PreTrainedTokenizerBase, resume: str | None, length: int | None = None) -> None:
    """Train, and save the finished model to output_dir; or end with what to do when it could not be finished.

    Args:
        trainer: A `StageTrainer` with its callbacks attached.
        tokenizer: Saved beside the model.
        resume: Checkpoint to go on from.
        length: Tokens in a row of token ids: after an out-of-memory error micro-batches of such rows are tried.

    Raises:
        ValueError: out of memory (the message names a micro-batch that fits), or a loss that is no number or spikes.
        SystemExit: stopped by SIGTERM, after a checkpoint; code 143 as a shell gives it.
    """
    refuse_sharded_adapter(trainer)
    if trainer.args.should_save and trainer.args.save_strategy != "no":
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        warn_of_little_space(trainer.args.output_dir, trained, trainer.args.save_total_limit)
    full = False
    try:
        trainer.train(resume_from_checkpoint=resume)
    except torch.OutOfMemoryError:
        if os.environ.get("SMALL_DOGE_TRACEBACK"):
            raise
        full = True
    if full:
        # Only here has the failed step's graph been let go with its traceback.
        gc.collect()
        raise ValueError(out_of_memory_advice(trainer, length))
    stop = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StopOnSignal))
    if stop.stopped:
        if trainer.is_world_process_zero():
            logger.warning(
                "stopped by SIGTERM after step %d; the same command goes on from %s.",
                trainer.state.global_step,
                last_checkpoint(trainer.args.output_dir),
            )
        raise SystemExit(143)
    save_finished(trainer, tokenizer)
    if trainer.is_world_process_zero():
        write_report(Path(trainer.args.output_dir))
