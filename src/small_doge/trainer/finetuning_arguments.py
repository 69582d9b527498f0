"""What a recipe of a stage after pretraining may say: TRL's own options beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl import DistillationConfig, DPOConfig, GRPOConfig, SFTConfig

from small_doge.trainer.arguments import RecipeArguments, option

ROLLOUT_ENGINES = ("slots", "transformers")


@dataclass
class AdapterArguments:
    """LoRA in a recipe, under the names of TRL's ModelConfig."""

    use_peft: bool = option(
        False, "Train LoRA adapters beside the frozen weights; the finished model has them merged into its weights."
    )
    lora_r: int = option(16, "Rank of the adapters.")
    lora_alpha: int = option(32, "Their scale: what they add is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = option(0.05, "Dropout of what goes into the adapters.")
    lora_target_modules: list[str] | None = option(
        None, "Names of the linear maps with adapters, such as [q_proj, v_proj]; all but the head if not given."
    )
    lora_modules_to_save: list[str] | None = option(None, "Names of modules to train whole beside the adapters.")


@dataclass
class SupervisedArguments(AdapterArguments, RecipeArguments, SFTConfig):
    """Supervised fine-tuning and distillation (`small-doge train sft`)."""


@dataclass
class PreferenceArguments(AdapterArguments, RecipeArguments, DPOConfig):
    """Direct preference optimization (`small-doge train dpo`)."""


@dataclass
class RolloutArguments:
    """Where completions of the model in training come from."""

    rollout_engine: str = option(
        "slots", "What generates the completions: slots (our engine, on the training weights) or transformers."
    )
    system_prompt: str | None = option(None, "System message put before every prompt.")

    def __post_init__(self) -> None:
        if self.rollout_engine not in ROLLOUT_ENGINES:
            raise ValueError(f"rollout_engine is {self.rollout_engine!r}: choose one of {', '.join(ROLLOUT_ENGINES)}.")
        if self.use_peft and self.rollout_engine == "slots":  # type: ignore[attr-defined]
            raise ValueError(
                "rollout_engine slots generates from the weights, and adapters stand beside them: set "
                "rollout_engine: transformers."
            )
        super().__post_init__()  # type: ignore[misc]


@dataclass
class LogitArguments(RolloutArguments, AdapterArguments, RecipeArguments, DistillationConfig):
    """Distillation from a teacher's logits (`small-doge train distill`)."""


@dataclass
class ReinforcementArguments(RolloutArguments, AdapterArguments, RecipeArguments, GRPOConfig):
    """Group relative policy optimization (`small-doge train grpo`)."""

    reward_functions: list[str] = option(["accuracy", "format"], "Names of rewards in small_doge.rewards.")
    reward_options: dict[str, dict[str, Any]] | None = option(
        None, "Options of rewards by name, such as {cosine: {max_tokens: 512}}."
    )
    curriculum: list[str] | None = option(
        None, "Tasks of reasoning-gym to make problems of as the run goes, instead of a data set; needs max_steps."
    )
    curriculum_threshold: float = option(
        0.7, "A task rises a level when its mean score over curriculum_window problems reaches this."
    )
    curriculum_window: int = option(16, "Problems of a task that this mean is taken over.")
    curriculum_reward: str | None = option(None, "The reward that is the score; the first one if not given.")
