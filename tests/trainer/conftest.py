"""What the stages are tried on: a few packed rows, a recipe of a tiny model, and a process to run it in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stage_process import Stage

ROWS, LENGTH = 48, 32
TINY_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 512,
}


def packed_rows(rows: int, seed: int, low: int = 3, high: int = 200) -> dict[str, list[list[int]]]:
    """Rows of two documents each, whose tokens follow one another by a rule that a tiny model can learn."""
    rng = np.random.default_rng(seed)
    first = rng.integers(low, high, (rows, 1))
    ids = low + (first - low + np.arange(LENGTH) * rng.integers(1, 4, (rows, 1))) % (high - low)
    return {"input_ids": ids.tolist(), "seq_lengths": [[LENGTH // 2, LENGTH // 2]] * rows}


def save_rows(folder: Path, seed: int, **options: int) -> Path:
    """A data set folder with those rows, `train` and `test`."""
    from datasets import Dataset, DatasetDict

    parts = {"train": packed_rows(ROWS, seed, **options), "test": packed_rows(8, seed + 1, **options)}
    DatasetDict({name: Dataset.from_dict(part) for name, part in parts.items()}).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="session")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 48 rows of 32 tokens."""
    return save_rows(tmp_path_factory.mktemp("rows"), seed=0)


class Recipe:
    """Writes a recipe for the tiny model and gives the command line that names it."""

    def __init__(self, folder: Path, dataset: Path, tokenizer: Path) -> None:
        self.folder = folder
        self.values: dict[str, Any] = {
            "model_config": TINY_MODEL,
            "tokenizer_name_or_path": str(tokenizer),
            "dataset": str(dataset),
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 12,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "warmup_stable_decay",
            "logging_steps": 1,
            "save_steps": 3,
            "save_total_limit": 2,
            "report_to": "none",
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": False,
            "use_cpu": True,
            "seed": 7,
        }

    def __call__(self, name: str, **changes: Any) -> list[str]:
        """The command line of a run into folder `name`; a change to None removes the option."""
        values = {key: value for key, value in (self.values | changes).items() if value is not None}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return ["--config", str(path), "--output_dir", str(self.folder / name)]

    def log(self, name: str, key: str = "loss") -> dict[int, float]:
        """What a run wrote down, by step."""
        lines = (self.folder / name / "log.jsonl").read_text().splitlines()
        return {line["step"]: line[key] for line in map(json.loads, lines) if key in line}


@pytest.fixture(scope="session")
def other_rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of other tokens, most of which the first rows do not have."""
    return save_rows(tmp_path_factory.mktemp("other"), seed=9, low=100, high=400)


@pytest.fixture(scope="session")
def new_recipe(rows_folder: Path, tokenizer_folder: Path) -> Callable[[Path], Recipe]:
    """Makes recipes that write below a folder."""
    return lambda folder: Recipe(folder, rows_folder, tokenizer_folder)


@pytest.fixture
def recipe(tmp_path: Path, new_recipe: Callable[[Path], Recipe]) -> Recipe:
    return new_recipe(tmp_path)


@pytest.fixture
def short_run() -> dict[str, Any]:
    """Options of a fine-tuning run of a few steps on a CPU that keeps nothing but its log."""
    return {
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
    }


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage") / "errors.txt")
