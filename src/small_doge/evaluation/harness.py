"""Runs tasks through lm-eval and keeps, of each metric, the value of every item."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from small_doge.evaluation.lists import TASKS_FOLDER, task_names
from small_doge.evaluation.rows import find_rows


@dataclass(frozen=True)
class TaskScores:
    """What one task gave.

    Args:
        task: Its name.
        shots: Worked examples in each prompt.
        items: For each metric its value for every item, in the order of the items; of a perplexity the log-probability.
        chance: Share that guessing would get right; None where there is nothing to guess from.
        official: Items of the whole official set.
        primary: Metric of the summary.
        groups: The item's group (MMLU's subject, BBH's task), if it has one.
        seconds: Time that it took.
    """

    task: str
    shots: int
    items: dict[str, list[float]]
    chance: float | None
    official: int
    primary: str
    groups: list[str] = field(default_factory=list)
    seconds: float = 0.0


def task_file(name: str) -> dict[str, Any]:
    """What a task's own file says, the functions that it names as text.

    Raises:
        ValueError: there is no such task.
    """
    if name not in task_names():
        raise ValueError(f"there is no task {name!r}: choose from {', '.join(task_names())}.")

    class Loader(yaml.SafeLoader):
        """Reads the file without importing the functions that it names."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]
    return yaml.load((TASKS_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader)


def task_metadata(name: str) -> dict[str, Any]:
    """A task's default shots (`shots`, `chat_shots`), items of the whole official set, and primary metric."""
    return task_file(name)["metadata"]


def check_tasks(names: Sequence[str], data_dir: str | None) -> None:
    """Look whether every task exists and has its file, before the first is run.

    Raises:
        ValueError: one does not.
    """
    for name in names:
        rows = task_file(name)["dataset_kwargs"]
        if data_dir is not None and "file" in rows:
            find_rows(Path(data_dir), rows["file"])


def run_task(
    lm: LM,
    name: str,
    data_dir: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    chat: bool = False,
) -> TaskScores:
    """Run one task.

    Args:
        data_dir: Folder of local files; the hub if left out.
        shots: Worked examples; the task's own number if left out.
        limit: Most items, a part drawn by the seed.
        seed: Of the order of items and of the choice of shots.
        chat: Ask through the chat template, with the task's number of shots for that.

    Raises:
        ValueError: no such task, or no file for it.
    """
    metadata = task_metadata(name)
    if shots is None:
        shots = metadata["chat_shots" if chat else "shots"]
    start = time.perf_counter()
    # Shots that travel with the row (`worked`) are none to lm-eval.
    runtime = {"data_dir": data_dir, "shots": shots, "seed": seed}
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, metadata=runtime)
    (task,) = manager.load(name)["tasks"].values()
    worked = "worked" in task.task_docs.features
    task.set_config("num_fewshot", 0 if worked else shots)
    found = simple_evaluate(
        model=lm,
        tasks=[task],
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=chat,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        task_manager=manager,
    )
    assert found is not None
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    items = {metric: [float(sample[metric]) for sample in samples] for metric in samples[0]["metrics"]}
    choices = [len(sample["arguments"]) for sample in samples]
    guesses = task.OUTPUT_TYPE == "multiple_choice"
    group = next((key for key in ("subject", "task") if key in samples[0]["doc"]), None)
    return TaskScores(
        task=name,
        shots=shots,
        items=items,
        chance=sum(1 / n for n in choices) / len(choices) if guesses else None,
        official=metadata["official"],
        primary=metadata["primary"],
        groups=[sample["doc"][group] for sample in samples] if group else [],
        seconds=time.perf_counter() - start,
    )
