"""`--tokens N`: the part of a recipe that follows from a token budget."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

from small_doge.models.doge.accounting_doge import count_parameters
from small_doge.models.doge.configuration_doge import DogeConfig
from small_doge.trainer.footprint import largest_divisor
from small_doge.utils.scaling_laws import RELEASED_RUNS, plan

logger = logging.getLogger(__name__)


def options_for_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """Batch, steps, rates and the steps between saves for the `tokens` of a recipe.

    Args:
        values: The recipe, with `tokens`; `model_config`, `optimizer`, `max_length` and
            `per_device_train_batch_size` (the largest micro-batch to use) are read from it.

    Raises:
        ValueError: tokens that are no positive number, or too few for ten steps.
    """
    tokens = token_count(values["tokens"])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    length = int(values.get("max_length", 2048))
    size = released_size(values.get("model_config") or {})
    # Eight rows a step and process, so that powers of two divide the work; one, where rows are few.
    budget = plan(size, tokens, values.get("optimizer", "adamw"), length, multiple=8 * world)
    rows = budget.rows // world
    most = int(values.get("per_device_train_batch_size", 8))
    micro = largest_divisor(rows, most)
    often = max(1, budget.steps // 10)
    return {
        "tokens": tokens,
        "max_steps": budget.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "learning_rate": budget.learning_rate,
        "muon_learning_rate": budget.muon_learning_rate,
        "save_steps": often,
        "eval_steps": often,
    }


def released_size(fields: dict[str, Any]) -> str:
    """The released size that a `model_config` names, or is nearest to in parameters without embeddings."""
    named = str(fields.get("size", "")).removeprefix("Doge-").removesuffix("-MoE")
    if named in RELEASED_RUNS:
        return named
    mine = _not_embedding(DogeConfig(**{name: value for name, value in fields.items() if name != "size"}))
    return min(RELEASED_RUNS, key=lambda size: abs(math.log(_not_embedding(DogeConfig.from_size(size)) / mine)))


def _not_embedding(config: DogeConfig) -> int:
    count = count_parameters(config)
    return count.total - count.embedding


def token_count(value: Any) -> float:
    """A number of tokens as a person writes it: 70e6, 70M, 4B.

    Raises:
        ValueError: no positive number.
    """
    text = str(value)
    factor = {"M": 1e6, "B": 1e9}.get(text[-1:].upper(), 1.0)
    try:
        tokens = float(text if factor == 1.0 else text[:-1]) * factor
    except ValueError:
        tokens = math.nan
    if not 0 < tokens < math.inf:
        raise ValueError(f"tokens is {value!r}: give a number such as 70e6, 70M or 4B.")
    return tokens
