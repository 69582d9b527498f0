"""Verifiable rewards: pure functions of a problem's completions, by name.

A reward judges all completions of one problem at a time, a `Group`, because some of them mean something only beside
the others. It returns a number for each, or None where it cannot judge (a reference that cannot be parsed): such a
completion is left out of that reward, never paid.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from small_doge.rewards.answers import accuracy, mathematics
from small_doge.rewards.group import Group, Judgement, each
from small_doge.rewards.gym import gym_score
from small_doge.rewards.length import cosine, length
from small_doge.rewards.repetition import repetition
from small_doge.rewards.steps import true_steps
from small_doge.rewards.thinking import well_formed

Reward = Callable[..., list[Judgement]]

REWARDS: dict[str, Reward] = {
    "accuracy": each(accuracy),
    "math": each(mathematics),
    "gym": gym_score,
    "format": each(well_formed),
    "steps": each(true_steps),
    "length": length,
    "cosine": cosine,
    "repetition": repetition,
}


def get_reward(name: str, **options: Any) -> Callable[[Group], list[Judgement]]:
    """The reward of that name, with its options set.

    Raises:
        ValueError: there is none, or it has no such option.
    """
    if name not in REWARDS:
        raise ValueError(f"there is no reward {name!r}: choose from {', '.join(sorted(REWARDS))}.")
    known = list(signature(REWARDS[name]).parameters)[1:]
    for option in options:
        if option not in known:
            has = f"choose from {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the reward {name!r} has no option {option!r}: {has}.")
    return partial(REWARDS[name], **options)


def text_of(completion: Any) -> str:
    """The text of a completion as TRL passes it: a string, or a list with one assistant message."""
    if isinstance(completion, str):
        return completion
    return "".join(message.get("content") or "" for message in completion)


__all__ = [
    "REWARDS",
    "Group",
    "Judgement",
    "Reward",
    "accuracy",
    "get_reward",
    "mathematics",
    "text_of",
    "true_steps",
    "well_formed",
]
