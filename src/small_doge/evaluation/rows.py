"""Rows of the evaluation sets, from JSON Lines in a folder or from the hub, in the same fields."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from small_doge.evaluation.hub_rows import HUB_ROWS

Rows = list[dict[str, Any]]

JSON_FIELDS = ("kwargs",)
"""Fields whose rows have different keys, which a table cannot hold: they travel as JSON text."""


def find_rows(folder: Path, name: str) -> Path:
    """The file `name`.jsonl, .jsonl.zst or .jsonl.gz of a folder.

    Raises:
        ValueError: there is none.
    """
    for ending in (".jsonl", ".jsonl.zst", ".jsonl.gz"):
        if (folder / f"{name}{ending}").is_file():
            return folder / f"{name}{ending}"
    raise ValueError(
        f"{folder} has no {name}.jsonl(.zst, .gz): name the folder that holds it with --data-dir, or leave --data-dir "
        "out to read from the hub."
    )


def read_rows(path: Path) -> Rows:
    """Every row of a JSON Lines file, compressed or not."""
    if path.suffix == ".zst":
        import zstandard

        with zstandard.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    if path.suffix == ".gz":
        import gzip

        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def hub_rows(path: str, split: str, name: str | None, convert: str) -> Rows:
    """A split of a hub data set, in the fields of the local files."""
    from datasets import load_dataset

    change: Callable[[dict[str, Any]], dict[str, Any] | None] = HUB_ROWS[convert]
    rows = (change(dict(row)) for row in load_dataset(path, name, split=split))
    return [row for row in rows if row is not None]


def task_splits(
    file: str,
    hub: dict[str, Any],
    data_dir: str | None = None,
    shots: int = 0,
    seed: int = 0,
    shots_file: str | None = None,
    group: str | None = None,
    intro: str = "",
    example: str = "",
    **_: Any,
) -> dict[str, Any]:
    """The splits `test` and `shots` of a task, as lm-eval's `custom_dataset` wants them.

    Rows are shuffled by the seed, so that a limit takes a fair part. Shots come from rows made for them (`shots_file`,
    or the hub's split); where a folder has none, the first of the shuffled rows become shots and are not scored.

    Args:
        file: Name of the local file without its ending.
        hub: `path`, `split` and `row` (a key of `HUB_ROWS`), and perhaps `name` and `shots` (a split).
        data_dir: Folder of local files; the hub if left out.
        shots: How many worked examples a prompt gets.
        group: Field whose value test rows and shots must share: each row then carries its shots as the text `worked`.
        intro, example: Templates (jinja) of the beginning and of each shot of `worked`.
    """
    if data_dir is not None:
        test = read_rows(find_rows(Path(data_dir), file))
        examples = read_rows(find_rows(Path(data_dir), shots_file)) if shots_file else None
    else:
        test = hub_rows(hub["path"], hub["split"], hub.get("name"), hub["row"])
        examples = (
            hub_rows(hub["path"], hub["shots"], hub.get("name"), hub["row"]) if shots and "shots" in hub else None
        )
    order = random.Random(seed)
    order.shuffle(test)
    if group is not None:
        add_worked(test, examples or [], group, shots, intro, example)
        return as_splits(file, test, [])
    if examples is None:
        return as_splits(file, test[shots:], test[:shots])
    order.shuffle(examples)
    return as_splits(file, test, examples[:shots])


def bbh_splits(
    file: str, hub: dict[str, Any], data_dir: str | None = None, shots: int = 0, seed: int = 0, **_: Any
) -> dict[str, Any]:
    """The splits of BIG-Bench Hard; its worked examples are those of the paper, which lm-eval carries."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    prompts = {
        path.stem: load_yaml(path, recursive=False)
        for path in (Path(lm_eval.tasks.__file__).parent / "bbh" / "cot_fewshot").glob("[a-z]*.yaml")
    }
    if data_dir is not None:
        test = read_rows(find_rows(Path(data_dir), file))
    else:
        test = [
            row | {"task": task}
            for task in sorted(prompts)
            for row in hub_rows(hub["path"], hub["split"], task, hub["row"])
        ]
    random.Random(seed).shuffle(test)
    for row in test:
        prompt = prompts[row["task"]]
        examples = prompt["fewshot_config"]["samples"][:shots]
        worked = (f"Q: {e['input']}\nA: Let's think step by step.\n{e['target']}\n\n" for e in examples)
        row["worked"] = prompt["description"].strip() + "\n\n" + "".join(worked)
    return as_splits(file, test, [])


def add_worked(test: Rows, examples: Rows, group: str, shots: int, intro: str, example: str) -> None:
    """Give every row the field `worked`: the intro and the first examples of its own group."""
    from jinja2 import Template

    shown, head = Template(example, keep_trailing_newline=True), Template(intro, keep_trailing_newline=True)
    texts: dict[Any, list[str]] = {}
    for row in examples:
        texts.setdefault(row[group], []).append(shown.render(**row))
    for row in test:
        row["worked"] = head.render(**row) + "".join(texts.get(row[group], [])[:shots])


def as_splits(file: str, test: Rows, shots: Rows) -> dict[str, Any]:
    """lm-eval's two splits; it wants a split of shots even where none is used."""
    from datasets import Dataset

    if not test:
        raise ValueError(f"{file} has no row left to score: lower --shots.")
    return {"test": Dataset.from_list(flat(test)), "shots": Dataset.from_list(flat(shots or test[:1]))}


def flat(rows: Iterable[dict[str, Any]]) -> Rows:
    """Rows whose fields fit a table: `JSON_FIELDS` as JSON text."""
    return [{k: json.dumps(v) if k in JSON_FIELDS else v for k, v in row.items()} for row in rows]
