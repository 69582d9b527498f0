"""What every stage after pretraining promises: it outlives a kill, needs a chat template, and runs on two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from launching import launch
from transformers import AutoTokenizer

SUMS = [(f"What is {a} + {b}?", str(a + b)) for a in range(5) for b in range(5)]


def say(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"messages": say("user", q) + say("assistant", a)} for q, a in SUMS],
    "dpo": [
        {"prompt": say("user", q), "chosen": say("assistant", a), "rejected": say("assistant", "No.")} for q, a in SUMS
    ],
    "distill": [{"question": q} for q, _ in SUMS],
    "grpo": [{"question": q, "answer": a} for q, a in SUMS],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "sft": {"max_length": 64, "assistant_only_loss": True},
    "dpo": {"max_length": 64, "precompute_ref_log_probs": True},
    "distill": {"max_completion_length": 6},
    "grpo": {"max_completion_length": 6, "num_generations": 2, "reward_functions": ["accuracy", "repetition"]},
}


@pytest.fixture
def command(recipe, model_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a stage's run into a folder of that name."""

    def write(kind: str, name: str, **changes: Any) -> list[str]:
        data = tmp_path / f"{kind}_rows"
        if not data.exists():
            DatasetDict(train=Dataset.from_list(ROWS[kind])).save_to_disk(str(data))
        options = {"model_config": None, "tokenizer_name_or_path": None, "model_name_or_path": str(model_folder)}
        if kind == "distill":
            options["teacher_model_name_or_path"] = str(model_folder)
        options |= {"dataset": str(data), "bf16": False, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-3}
        return recipe(name, **options | OPTIONS[kind] | changes)

    return write


@pytest.mark.parametrize("kind", ROWS)
def test_a_killed_run_goes_on_to_the_same_losses(kind: str, command, recipe, stage) -> None:
    argv = command(kind, "killed")
    process = stage.start(argv, kind)
    deadline = time.monotonic() + 120
    while not (recipe.folder / "killed" / "checkpoint-2").exists():
        assert process.is_alive() and time.monotonic() < deadline, stage.errors.read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    shutil.rmtree(recipe.folder / "killed" / "checkpoint-4", ignore_errors=True)
    assert stage.run(argv, kind) == 0
    assert "going on from" in stage.errors.read_text()
    assert stage.run(command(kind, "whole"), kind) == 0
    for figure in ("loss", "grad_norm", "num_tokens"):
        assert recipe.log("killed", figure) == recipe.log("whole", figure)
        assert len(recipe.log("whole", figure)) == 4
    for name in ("whole", "killed"):
        assert (recipe.folder / name / "report.html").exists()


@pytest.mark.parametrize("kind", ROWS)
def test_a_base_model_without_a_chat_template_is_refused_with_the_mend(
    kind: str, command, stage, model_folder: Path, tmp_path: Path
) -> None:
    bare = AutoTokenizer.from_pretrained(str(model_folder))
    bare.chat_template = None
    bare.save_pretrained(str(tmp_path / "bare"))
    assert stage.run(command(kind, "run", tokenizer_name_or_path=str(tmp_path / "bare")), kind) == 1
    said = " ".join(stage.errors.read_text().split())
    assert "has no chat template: take one of `small-doge tokenizer train`, or set chat_template." in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_two_processes_train_as_one(kind: str, command, recipe, stage) -> None:
    assert stage.run(command(kind, "one"), kind) == 0
    launch("ddp.yaml", command(kind, "two", gradient_accumulation_steps=1), kind)
    (record,) = json.loads((recipe.folder / "two" / "run.json").read_text())["starts"]
    assert record["processes"] == 2
    if kind in ("sft", "dpo"):
        for figure in ("loss", "grad_norm"):
            assert recipe.log("two", figure) == pytest.approx(recipe.log("one", figure), rel=1e-4, abs=1e-6)
    else:  # The second process draws answers of its own.
        assert len(recipe.log("two")) == 4
        assert recipe.log("two", "num_tokens")[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_one_process_under_the_launcher_is_the_stage_itself(kind: str, command, recipe, stage) -> None:
    assert stage.run(command(kind, "plain"), kind) == 0
    launch("single_gpu.yaml", command(kind, "launched"), kind)
    assert recipe.log("launched") == pytest.approx(recipe.log("plain"), rel=1e-5, abs=1e-7)
