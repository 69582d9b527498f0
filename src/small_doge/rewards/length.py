"""Rewards that ask for short right answers; lengths are in tokens."""

from __future__ import annotations

import math

from small_doge.rewards.answers import judge_of
from small_doge.rewards.group import Group, Judgement


def length(group: Group, correct: str = "accuracy") -> list[Judgement]:
    """From 0.5 for the shortest completion of the problem to -0.5 for the longest; a wrong one never earns above 0.

    Kimi k1.5 (arXiv 2501.12599). All 0 where they are of one length.

    Args:
        group: The completions of one problem; judged beside one another, so a process should hold all of them.
        correct: What tells right from wrong: "accuracy" or "math".
    """
    judge, lengths = judge_of(correct), group.lengths
    shortest, spread = min(lengths), max(lengths) - min(lengths)
    rewards: list[Judgement] = []
    for text, tokens in zip(group.texts, lengths, strict=True):
        right = judge(text, group.answer)
        reward = 0.5 - (tokens - shortest) / spread if spread else 0.0
        rewards.append(None if right is None else reward if right else min(0.0, reward))
    return rewards


def cosine(
    group: Group,
    max_tokens: int = 1000,
    right_at_once: float = 1.0,
    right_at_last: float = 0.5,
    wrong_at_once: float = -1.0,
    wrong_at_last: float = -0.5,
    correct: str = "accuracy",
) -> list[Judgement]:
    """Half a cosine over the length: right answers earn more when short, wrong ones lose less when long.

    arXiv 2502.03373. A completion longer than `max_tokens` counts as that long.

    Args:
        group: The completions of one problem.
        max_tokens: Length at which the "at last" values are reached.
        right_at_once, right_at_last, wrong_at_once, wrong_at_last: Rewards at no tokens and at `max_tokens`.
        correct: What tells right from wrong: "accuracy" or "math".
    """
    judge = judge_of(correct)
    rewards: list[Judgement] = []
    for text, tokens in zip(group.texts, group.lengths, strict=True):
        right = judge(text, group.answer)
        first, last = (right_at_once, right_at_last) if right else (wrong_at_once, wrong_at_last)
        share = (1 + math.cos(math.pi * min(1.0, tokens / max_tokens))) / 2
        rewards.append(None if right is None else last + (first - last) * share)
    return rewards
