"""How much of everything the road takes; the defaults fit 15 minutes of two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Sizes of the road's data and model. Counts are rows unless they say otherwise.

    Args:
        vocab_size: Tokens of the tokenizer.
        row_length: Tokens in a pretraining row.
        tokenizer_megabytes: Text that the tokenizer is trained on.
        tokenizer_problems: Sums that it is trained on beside the text.
        pretrain_rows: Rows of pretraining.
        practice_share: Share of its tokens that are worked sums, from which the model learns to copy numbers.
        held_out_kilobytes: Held-out text that bits per byte are measured on.
        conversations: Conversations of supervised fine-tuning.
        conversation_kilobytes: The most text that these may hold together; the built-in ones hold less.
        preferences: Preference pairs.
        problems: Sums of one or two steps, worked, for distillation.
        comparisons: Comparisons of two numbers for it, with which the model solves two thirds of those held out.
        reminders: Earlier conversations mixed into distillation, so that they are not forgotten.
        reinforcement_problems: Comparisons that GRPO draws from.
        practice, sums, pairs: How hard pretraining's sums, the others and the comparisons are (options of
            `builtin:arithmetic`).
        held_out_conversations, held_out_preferences, held_out_problems: What each figure is measured on.
        seed: Of every random choice.
        model: Fields of DogeConfig.
        overrides: Options for single stages beside their recipe, by stage.
    """

    vocab_size: int = 2048
    row_length: int = 256
    tokenizer_megabytes: float = 8.0
    tokenizer_problems: int = 8000
    pretrain_rows: int = 5000
    practice_share: float = 0.05
    held_out_kilobytes: int = 320
    conversations: int = 2400
    conversation_kilobytes: int = 500
    preferences: int = 1000
    problems: int = 1600
    comparisons: int = 1000
    reminders: int = 300
    reinforcement_problems: int = 2000
    practice: dict[str, Any] = field(
        default_factory=lambda: {"steps": [1, 2], "max_value": 99, "kinds": ["chain", "bare", "difference", "total"]}
    )
    sums: dict[str, Any] = field(default_factory=lambda: {"steps": [1, 2], "max_value": 10, "kinds": ["chain", "bare"]})
    pairs: dict[str, Any] = field(default_factory=lambda: {"max_value": 99, "kinds": ["larger", "smaller"]})
    held_out_conversations: int = 300
    held_out_preferences: int = 400
    held_out_problems: int = 500
    seed: int = 233
    model: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        }
    )
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
