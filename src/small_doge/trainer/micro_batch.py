"""Divides the rows of a step into micro-batches: the largest that fit the memory, and the same step for all that."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedConfig

from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.ops.support import TRITON_INSTALLED
from small_doge.trainer.footprint import largest_divisor, largest_micro_batch

logger = logging.getLogger(__name__)


def choose_micro_batch(args: Any, config: PreTrainedConfig, length: int) -> None:
    """Give `args` the largest micro-batch that fits by `small_doge.trainer.footprint`, under `auto_micro_batch`.

    The rows that a process takes in a step stay per_device_train_batch_size x gradient_accumulation_steps as the
    recipe has them, so the losses do, but for rounding. The memory is `memory_gib`, else the smallest card's of all
    processes; on a CPU without `memory_gib` the recipe's micro-batch is kept, and a warning says so.

    transformers' own `auto_find_batch_size` shrinks the micro-batch alone, and with it the step.

    Args:
        args: `PretrainingArguments`, changed in place.
        config: Of the model.
        length: Tokens in a row.

    Raises:
        ValueError: another architecture than a Doge without experts, `auto_find_batch_size` beside it, memory for no
            row, or rows that divide one by one only.
    """
    if not args.auto_micro_batch:
        if args.memory_gib is not None:
            raise ValueError("memory_gib is read by auto_micro_batch alone: set auto_micro_batch: true, or drop it.")
        return
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_micro_batch keeps the rows of a step and auto_find_batch_size changes them: "
            "drop auto_find_batch_size, or set auto_micro_batch: false."
        )
    if not isinstance(config, DogeConfig) or config.is_moe:
        raise ValueError(
            "auto_micro_batch knows the memory of a Doge without experts only: set auto_micro_batch: false, and "
            "per_device_train_batch_size and gradient_accumulation_steps by hand."
        )
    gibibytes = memory_of_smallest_card(args)
    if gibibytes is None:
        logger.warning(
            "auto_micro_batch: a CPU has no card to fit: the recipe's micro-batch stays unless you set memory_gib."
        )
        return
    autocast = args.bf16 or args.fp16
    # Measured with a window that holds the rows.
    compiled = args.compile_layers and args.device.type == "cuda" and length <= config.keep_window_size
    options = (length, args.optimizer, args.gradient_checkpointing, autocast, compiled)
    fits = largest_micro_batch(config, gibibytes, *options)
    if compiled and TRITON_INSTALLED:
        fits = min(fits, _rows_of_the_fused_backward(config, length) or fits)
    if fits == 0:
        mend = "take a smaller model or shorter rows"
        if not args.gradient_checkpointing:
            mend += ", or set gradient_checkpointing: true"
        raise ValueError(f"auto_micro_batch: not one row of {length} tokens fits {gibibytes:.3g} GiB: {mend}.")
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    micro = largest_divisor(rows, fits)
    if micro == 1 < min(fits, rows):
        raise ValueError(
            f"auto_micro_batch: {fits} rows would fit, but the {rows} rows of a step divide one by one only: choose "
            f"per_device_train_batch_size x gradient_accumulation_steps with a divisor, such as {rows + 1}."
        )
    args.per_device_train_batch_size, args.gradient_accumulation_steps = micro, rows // micro
    logger.info("%.3g GiB hold %d rows: %d x %d a step and process.", gibibytes, fits, rows // micro, micro)


def _rows_of_the_fused_backward(config: DogeConfig, length: int) -> int:
    """Rows beyond which attention's backward pass would keep too much and take its slower way."""
    from small_doge.ops.dynamic_mask_attention.triton_attention import MOST_KEPT

    return MOST_KEPT // (config.num_attention_heads * length * length)


def memory_of_smallest_card(args: Any) -> float | None:
    """GiB that training may count on in every process, so that all divide the step alike; None on a CPU untold."""
    if args.memory_gib is not None:
        return args.memory_gib
    if args.device.type != "cuda":
        return None
    return min(gather_object([torch.cuda.get_device_properties(args.device).total_memory / 2**30]))
