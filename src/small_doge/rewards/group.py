"""What a reward judges: the completions of one problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Judgement = float | None


@dataclass(frozen=True)
class Group:
    """The completions of one problem, in order.

    Args:
        answer: The problem's reference answer.
        texts: What each completion says.
        ids: Token ids of each completion, its end token included.
        metadata: What the data says of the problem beside it, such as reasoning-gym's parameters.
    """

    answer: str
    texts: Sequence[str]
    ids: Sequence[Sequence[int]] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [len(tokens) for tokens in self.ids]


def each(judge: Callable[[str, str], Judgement]) -> Callable[[Group], list[Judgement]]:
    """A reward of a judge who looks at one completion's text and the answer."""

    def reward(group: Group) -> list[Judgement]:
        return [judge(text, group.answer) for text in group.texts]

    return reward
