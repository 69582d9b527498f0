"""Which tasks there are, and the two lists of the released models' tables."""

from __future__ import annotations

from pathlib import Path

TASKS_FOLDER = Path(__file__).parent / "tasks"

LISTS = {
    "base": ("mmlu", "triviaqa", "arc_easy", "arc_challenge", "piqa", "hellaswag", "openbookqa", "winogrande"),
    "instruct": ("ifeval", "mmlu", "bbh", "arc_easy", "arc_challenge", "piqa", "hellaswag"),
}


def task_names() -> list[str]:
    """Names of the tasks, by their files."""
    return sorted(path.stem for path in TASKS_FOLDER.glob("[a-z]*.yaml"))


def named_tasks(names: str) -> list[str]:
    """The tasks that a text names, by commas: tasks, and lists (`base`, `instruct`; `list`: all); each once.

    Raises:
        ValueError: a name that is neither.
    """
    known = task_names()
    found: list[str] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name != "list" and name not in LISTS and name not in known:
            raise ValueError(f"there is no task {name!r}: choose from {', '.join([*LISTS, *known])}.")
        found += known if name == "list" else LISTS.get(name, (name,))
    return list(dict.fromkeys(found))
