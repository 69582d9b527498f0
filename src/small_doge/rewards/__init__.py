"""Verifiable rewards: pure functions of a completion's text and the problem's answer, by name.

A reward returns a number, or None where it cannot judge (an answer that cannot be parsed): such a completion is left
out of that reward, never paid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from small_doge.rewards.answers import accuracy
from small_doge.rewards.steps import true_steps
from small_doge.rewards.thinking import well_formed

Reward = Callable[..., float | None]

REWARDS: dict[str, Reward] = {"accuracy": accuracy, "format": well_formed, "steps": true_steps}


def get_reward(name: str) -> Reward:
    """The reward of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in REWARDS:
        raise ValueError(f"there is no reward {name!r}: choose from {', '.join(sorted(REWARDS))}.")
    return REWARDS[name]


def text_of(completion: Any) -> str:
    """The text of a completion as TRL passes it: a string, or a list with one assistant message."""
    if isinstance(completion, str):
        return completion
    return "".join(message.get("content") or "" for message in completion)


__all__ = ["REWARDS", "Reward", "accuracy", "get_reward", "text_of", "true_steps", "well_formed"]
