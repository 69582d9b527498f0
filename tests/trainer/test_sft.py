"""Supervised fine-tuning: the three forms that conversations come in train alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from stage_runs import run, steps
from torch._dynamo.utils import counters
from transformers import AutoTokenizer

from small_doge.trainer.doge import sft

CONVERSATIONS = [
    [
        {"role": "user", "content": f"What is {i}?"},
        {"role": "assistant", "content": f"{i} apples and a dog." * (i % 3 + 1)},
    ]
    for i in range(6)
]


def encoded(folder: Path) -> dict[str, list[Any]]:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    rows = [
        tokenizer.apply_chat_template(row, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        for row in CONVERSATIONS
    ]
    return {name: [row[name] for row in rows] for name in ("input_ids", "assistant_masks")}


def packed(columns: dict[str, list[Any]], rows: int) -> dict[str, list[Any]]:
    """The encoded rows, so many in each row."""
    groups = [range(first, first + rows) for first in range(0, len(CONVERSATIONS), rows)]
    joined = {name: [[x for i in group for x in values[i]] for group in groups] for name, values in columns.items()}
    return joined | {"seq_lengths": [[len(columns["input_ids"][i]) for i in group] for group in groups]}


def first_loss(rows: dict[str, list[Any]], model_folder: Path, tmp_path: Path, **options: Any) -> float:
    """The loss of one step over all the rows at once."""
    data = tmp_path / "data"
    DatasetDict(train=Dataset.from_dict(rows)).save_to_disk(str(data))
    options = {
        "model_name_or_path": str(model_folder),
        "dataset": str(data),
        "output_dir": str(tmp_path / "out"),
        "assistant_only_loss": True,
        "per_device_train_batch_size": len(CONVERSATIONS),
        "max_steps": 1,
        **options,
    }
    return steps(run(sft.main, options))[0]["loss"]


@pytest.mark.parametrize(
    "form",
    ["encoded rows with their masks", "rows packed in advance", "messages packed by the recipe"],
)
def test_every_form_of_the_data_has_the_loss_of_separate_conversations(
    form: str, model_folder: Path, tmp_path: Path, short_run: dict[str, Any]
) -> None:
    messages = {"messages": CONVERSATIONS}
    expected = first_loss(messages, model_folder, tmp_path / "messages", **short_run)
    if form == "messages packed by the recipe":
        got = first_loss(messages, model_folder, tmp_path / "packed", packing=True, max_length=256, **short_run)
    else:
        columns = encoded(model_folder)
        got = first_loss(
            columns if "masks" in form else packed(columns, 3), model_folder, tmp_path / "other", **short_run
        )
    assert got == pytest.approx(expected, abs=1e-5)


def test_encoded_rows_without_a_mask_are_refused_with_the_mend(
    model_folder: Path, tmp_path: Path, short_run: dict[str, Any]
) -> None:
    rows = {"input_ids": encoded(model_folder)["input_ids"]}
    with pytest.raises(ValueError, match="no assistant_masks: prepare them with `apply_chat_template: true`"):
        first_loss(rows, model_folder, tmp_path, **short_run)


@pytest.mark.slow
def test_compiled_layers_have_the_same_losses_and_few_versions(
    model_folder: Path, tmp_path: Path, short_run: dict[str, Any]
) -> None:
    rows = {"messages": CONVERSATIONS}
    each = {"per_device_train_batch_size": 1, "max_steps": len(CONVERSATIONS)}
    eager = first_loss(rows, model_folder, tmp_path / "eager", **(short_run | each))
    torch._dynamo.reset()
    counters.clear()
    compiled = first_loss(rows, model_folder, tmp_path / "compiled", compile_layers=True, **(short_run | each))
    assert compiled == pytest.approx(eager, abs=1e-5)
    # One for the first length, and one or two for all others: with padding and without.
    assert 1 <= counters["stats"]["unique_graphs"] <= 3
