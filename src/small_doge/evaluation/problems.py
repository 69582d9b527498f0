"""Accuracy on problems with a checkable answer, by generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from small_doge.evaluation.statistics import wilson_interval
from small_doge.inference.engine import Completion, Engine
from small_doge.rewards import accuracy, well_formed


@dataclass(frozen=True)
class ProblemScores:
    """Results on a list of problems, item by item, so that two models can be compared on the same items."""

    right: list[bool]
    formed: list[bool]
    completions: list[Completion]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)

    @property
    def format_rate(self) -> float:
        """Share of completions with well-formed thinking."""
        return sum(self.formed) / len(self.formed)

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson_interval(sum(self.right), len(self.right))


def solve(
    engine: Engine, problems: Sequence[dict[str, Any]], max_new_tokens: int = 96, batch_size: int = 100
) -> ProblemScores:
    """Answer each problem's `question` greedily and check it against its `answer`."""
    prompts: list[Any] = [[{"role": "user", "content": problem["question"]}] for problem in problems]
    completions = engine.generate(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    pairs = list(zip(completions, problems, strict=True))
    return ProblemScores(
        right=[accuracy(completion.text, problem["answer"]) == 1.0 for completion, problem in pairs],
        formed=[well_formed(completion.text) == 1.0 for completion, _ in pairs],
        completions=completions,
    )
