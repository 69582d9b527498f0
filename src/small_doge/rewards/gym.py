"""reasoning-gym's own scorers, for tasks with more than one right answer."""

from __future__ import annotations

from small_doge.rewards.answers import answer_of
from small_doge.rewards.group import Group, Judgement


def gym_score(group: Group, whole: bool = False) -> list[Judgement]:
    """The score from 0 to 1 that the task's own scorer gives; None where the data names no task of reasoning-gym.

    The data's column `metadata` names it (`source_dataset`). A completion that never closes its thoughts scores 0.

    Args:
        group: The completions of one problem.
        whole: Pay nothing for a part of the right answer, for which some scorers pay: that of `gcd` gives 1/3 to "126"
            where 2 is right, and a small model learns to say that (docs/results.md).

    Raises:
        ValueError: reasoning-gym is not installed.
    """
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError:
        raise ValueError("the reward 'gym' needs reasoning-gym: pip install 'small-doge[reason]'.") from None

    task = group.metadata.get("source_dataset")
    if task is None:
        return [None] * len(group.texts)
    score = get_score_answer_fn(task)
    entry = {"answer": group.answer, "metadata": group.metadata}
    answers = [answer_of(text) for text in group.texts]
    scores = (0.0 if answer is None else float(score(answer=answer, entry=entry)) for answer in answers)
    return [float(value == 1.0) if whole else value for value in scores]
