"""A penalty for saying the same again."""

from __future__ import annotations

from small_doge.rewards.group import Group, Judgement


def repetition(group: Group, n: int = 3, penalty: float = -1.0) -> list[Judgement]:
    """`penalty` times the share of a completion's runs of `n` tokens that it has said before (arXiv 2502.03373).

    Tokens, and not words between spaces: it holds for Chinese as well. 0 for fewer than `n` tokens.
    """
    rewards: list[Judgement] = []
    for ids in group.ids:
        runs = list(zip(*(ids[start:] for start in range(n)), strict=False))
        rewards.append(penalty * (1 - len(set(runs)) / len(runs)) if runs else 0.0)
    return rewards
