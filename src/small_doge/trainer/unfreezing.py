"""Staged unfreezing: what is new in a grown model learns first, and what it was grown from joins later, in one run."""

from __future__ import annotations

import bisect
import logging
import re
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

STAGES = {
    "scores and norms": r"\.self_attn\.(A$|dt_proj\.|q_norm\.|k_norm\.)",
    "router and experts": r"\.mlp\.(router_gate|down_embed|up_embed)\.",
    "residuals": r"\.(input_residual|post_attention_residual)$",
    "everything": r"",
}
"""What each stage adds to the stages before it, as a pattern of parameter names."""


class StagedUnfreezing(TrainerCallback):
    """Trains the scores and norms first, then also router and experts, then also the residuals, then everything.

    The stage follows from the step alone, so a resumed run goes on where it was. A stage that finds nothing new in the
    model (a dense one has no experts) begins all the same, and trains what the stages before it do. Parameters that
    were frozen by the caller, as for LoRA, stay frozen.

    Args:
        starts: Shares of the run at which the four stages begin, from 0 and not falling; equal ones skip a stage.

    Raises:
        ValueError: starts that are not four rising shares from 0; in `on_train_begin` also for a model in which the
            first stage finds nothing, and for data parallel training without `ddp_find_unused_parameters`.
    """

    def __init__(self, starts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)) -> None:
        if len(starts) != len(STAGES) or starts[0] != 0 or list(starts) != sorted(starts) or starts[-1] > 1:
            raise ValueError(
                f"the stages start at {starts}: give {len(STAGES)} shares of the run, rising from 0 to at most 1."
            )
        self.starts = starts
        self._stage: int | None = None
        self._parameters: list[tuple[nn.Parameter, int]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if args.world_size > 1 and not args.ddp_find_unused_parameters and not args.fsdp and not args.deepspeed:
            raise ValueError(
                "staged unfreezing leaves parameters without a gradient, which data parallel training waits for: "
                "set ddp_find_unused_parameters: true."
            )
        patterns = [re.compile(pattern) for pattern in STAGES.values()]
        self._parameters = [
            (parameter, next(stage for stage, pattern in enumerate(patterns) if pattern.search("." + name)))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        self._stage = None
        if not any(stage == 0 for _, stage in self._parameters):
            raise ValueError("the model has no trainable scores (self_attn.A): staged unfreezing is for a Doge.")
        self._enter(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._enter(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for parameter, _ in self._parameters:
            parameter.requires_grad_(True)

    def _enter(self, state: TrainerState) -> None:
        # In whole steps, so that a share of 0.3 of 10 steps is not 2.9999 of them.
        begins = [round(start * state.max_steps) for start in self.starts]
        stage = bisect.bisect_right(begins, state.global_step) - 1
        if stage == self._stage:
            return
        self._stage = stage
        for parameter, first in self._parameters:
            parameter.requires_grad_(first <= stage)
        trainable = sum(parameter.numel() for parameter, first in self._parameters if first <= stage)
        logger.info("step %d: training %s, %d parameters", state.global_step, list(STAGES)[stage], trainable)
