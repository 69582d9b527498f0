"""Problems of reasoning-gym, made as a run needs them: each task at its own level, harder once that is mastered."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

logger = logging.getLogger(__name__)


class Curriculum(TrainerCallback, ExportableState):
    """Which level each task has reached, kept in the run's checkpoints.

    A level is reasoning-gym's own: it sets every attribute of the task (terms, digits, nodes) to its value of that
    number, and easier values stay in the mix. A task rises by one when the mean score of its last `window` problems
    reaches `threshold`, and the count begins again; it never falls.

    Args:
        tasks: Names of tasks of reasoning-gym; problem i is of task i modulo their number.
        threshold: Mean score, in the unit of the reward that judges.
        window: Problems of the task that the mean is taken over.
        problems: Problems that the run will ask for.
        seed: Of the problems.

    Raises:
        ValueError: reasoning-gym is missing, or it has no such task or no curriculum for it.
    """

    def __init__(self, tasks: Sequence[str], threshold: float, window: int, problems: int, seed: int) -> None:
        try:
            from reasoning_gym.factory import CURRICULA
        except ImportError:
            raise ValueError("a curriculum needs reasoning-gym: pip install 'small-doge[reason]'.") from None
        if window < 1 or not tasks:
            raise ValueError(
                f"the curriculum has {len(tasks)} tasks and a window of {window}: give at least 1 of each."
            )
        for task in tasks:
            if task not in CURRICULA:
                raise ValueError(f"reasoning-gym has no curriculum for {task!r}: choose from {', '.join(CURRICULA)}.")
        self.tasks, self.threshold, self.problems, self.seed = tuple(tasks), threshold, problems, seed
        self.levels = dict.fromkeys(tasks, 0)
        self.scores: dict[str, deque[float]] = {task: deque(maxlen=window) for task in tasks}
        self.highest = {task: self._highest_level(task) for task in tasks}
        self._made: dict[str, tuple[int, Any]] = {}

    def problem(self, index: int) -> dict[str, Any]:
        """Problem `index` at its task's present level: `prompt`, `answer`, `metadata` and `task`."""
        from reasoning_gym import create_dataset

        task = self.tasks[index % len(self.tasks)]
        level, dataset = self._made.get(task, (-1, None))
        if level != self.levels[task]:
            level = self.levels[task]
            dataset = create_dataset(task, **dataclasses.asdict(self._configuration(task, level)))
            self._made[task] = (level, dataset)
        entry = dataset[index]
        prompt = [{"role": "user", "content": entry["question"]}]
        return {"prompt": prompt, "answer": str(entry["answer"]), "metadata": entry["metadata"], "task": task}

    def judge(self, tasks: Sequence[str], scores: Sequence[float]) -> None:
        """Count the scores of problems, in order, and raise the levels of the tasks that are mastered."""
        for task, score in zip(tasks, scores, strict=True):
            seen = self.scores[task]
            seen.append(score)
            if len(seen) < (seen.maxlen or 0) or fmean(seen) < self.threshold or self._is_highest(task):
                continue
            self.levels[task] += 1
            seen.clear()
            logger.info("curriculum: %s rises to level %d of %d", task, self.levels[task], self.highest[task])

    def figures(self) -> dict[str, float]:
        """Level and mean score of each task, as they are logged."""
        found: dict[str, float] = {}
        for task, level in self.levels.items():
            found[f"curriculum/{task}/level"] = float(level)
            if self.scores[task]:
                found[f"curriculum/{task}/score"] = fmean(self.scores[task])
        return found

    def state(self) -> dict[str, Any]:
        """What transformers writes into a checkpoint's trainer_state.json."""
        scores = {task: list(seen) for task, seen in self.scores.items()}
        return {"args": {}, "attributes": {"levels": dict(self.levels), "scores": scores}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on at the checkpoint's levels; a task that it does not know begins at 0."""
        kept: Any = state.stateful_callbacks
        saved = kept.get(type(self).__name__, self.state())["attributes"]
        for task in self.tasks:
            self.levels[task] = min(saved["levels"].get(task, 0), self.highest[task])
            self.scores[task].extend(saved["scores"].get(task, ()))

    def _is_highest(self, task: str) -> bool:
        return self.levels[task] >= self.highest[task]

    def _configuration(self, task: str, level: int) -> Any:
        from reasoning_gym.factory import create_curriculum

        curriculum = create_curriculum(task)
        curriculum.set_global_level(level)
        return curriculum.generate_configuration({"seed": self.seed, "size": self.problems})

    def _highest_level(self, task: str) -> int:
        from reasoning_gym.factory import create_curriculum

        attributes = create_curriculum(task).attributes.values()
        valid = -1
        for level in range(max(len(attribute.levels) for attribute in attributes)):
            configuration = self._configuration(task, level)
            try:
                if hasattr(configuration, "validate"):
                    configuration.validate()
            except AssertionError as error:
                if level == 0:
                    raise ValueError(
                        f"reasoning-gym cannot make {task!r} at level 0 ({error}): leave it out."
                    ) from None
                break
            valid = level
        return valid
