"""What a recipe of a stage after pretraining may say: TRL's own options beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl import DPOConfig, GRPOConfig, SFTConfig

from small_doge.trainer.arguments import RecipeArguments, option


@dataclass
class SupervisedArguments(RecipeArguments, SFTConfig):
    """Supervised fine-tuning and distillation (`small-doge train sft`)."""


@dataclass
class PreferenceArguments(RecipeArguments, DPOConfig):
    """Direct preference optimization (`small-doge train dpo`)."""


@dataclass
class ReinforcementArguments(RecipeArguments, GRPOConfig):
    """Group relative policy optimization (`small-doge train grpo`)."""

    reward_functions: list[str] = option(["accuracy", "format"], "Names of rewards in small_doge.rewards.")
    reward_options: dict[str, dict[str, Any]] | None = option(
        None, "Options of rewards by name, such as {cosine: {max_tokens: 512}}."
    )
    system_prompt: str | None = option(None, "System message put before every prompt.")
    rollout_engine: str = option(
        "slots", "What generates the completions: slots (our engine, on the training weights) or transformers."
    )
