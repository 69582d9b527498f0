"""Distillation from logits: the student comes nearer to its teacher on answers of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from stage_runs import run, steps
from transformers import AutoTokenizer

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.processor.tokenizer import train_tokenizer
from small_doge.trainer.doge import distill
from small_doge.trainer.finetuning_arguments import ROLLOUT_ENGINES


@pytest.fixture(scope="module")
def teacher(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider model with the student's tokenizer, which says a few tokens far more often than others."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    fields = json.loads((model_folder / "config.json").read_text())
    torch.manual_seed(5)
    model = DogeForCausalLM(DogeConfig(**{**fields, "hidden_size": 64, "intermediate_size": 128}))
    with torch.no_grad():
        model.lm_head.weight[200:210] *= 20
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def options(model_folder: Path, teacher: Path, tmp_path: Path, short_run: dict[str, Any]) -> dict[str, Any]:
    rows = {
        "messages": [
            [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "A number."}]
            for i in range(16)
        ]
    }
    DatasetDict(train=Dataset.from_dict(rows), test=Dataset.from_dict(rows)).save_to_disk(str(tmp_path / "data"))
    return {
        "model_name_or_path": str(model_folder),
        "teacher_model_name_or_path": str(teacher),
        "dataset": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 8,
        "max_completion_length": 8,
        "max_steps": 2,
        "learning_rate": 1e-2,
        **short_run,
    }


def test_the_student_comes_nearer_to_its_teacher(options: dict[str, Any]) -> None:
    # One token an answer: what is compared depends on the questions alone, not on what was drawn.
    steep = {"learning_rate": 0.03, "lr_scheduler_type": "constant", "beta": 0.0}
    lines = run(distill.main, options | steep | {"max_completion_length": 1, "max_steps": 7})
    losses = [line["loss"] for line in steps(lines)]
    assert losses[-1] < 0.1 * losses[0]
    assert {"entropy", "completions/mean_length", "rollouts/tokens_per_second"} <= set(lines[0])
    assert (Path(options["output_dir"]) / "report.html").exists()


@pytest.mark.parametrize("engine", ROLLOUT_ENGINES)
def test_the_loss_is_the_kl_divergence_of_the_answers_tokens(
    engine: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = []
    compute = distill.LogitTrainer._compute_loss

    def compare(self: Any, student: Any, inputs: dict[str, Any], items: Any) -> Any:
        found = compute(self, student, inputs, items)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        kept = slice(inputs["prompt_ids"].shape[1] - 1, -1)
        with torch.no_grad():
            mine, other = (
                model(input_ids=ids, attention_mask=mask).logits[:, kept].log_softmax(-1)
                for model in (student, self.teacher_model)
            )
        apart = (mine.exp() * (mine - other)).sum(-1)[inputs["completion_mask"].bool()]
        expected.append((found[0].item(), apart.sum().item() / float(items)))
        return found

    monkeypatch.setattr(distill.LogitTrainer, "_compute_loss", compare)
    run(distill.main, options | {"rollout_engine": engine, "max_steps": 1})
    assert expected
    for found, kl in expected:
        assert found == pytest.approx(kl, rel=1e-4)


def test_held_out_questions_are_measured(options: dict[str, Any]) -> None:
    lines = run(distill.main, options | {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1})
    assert any("eval_loss" in line for line in lines)


def test_a_row_is_asked_up_to_its_last_question() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    again = [*said, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    assert distill.question_of({"messages": again}, None)["prompt"] == again[:3]
    assert [m["role"] for m in distill.question_of({"question": "a"}, "be kind")["prompt"]] == ["system", "user"]


def test_a_teacher_with_other_tokens_is_refused(options: dict[str, Any], teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train_tokenizer(["quite other words"] * 20, vocab_size=400, min_frequency=1).save_pretrained(str(other))
    with pytest.raises(ValueError, match="has another tokenizer: take one with the student's"):
        run(distill.main, options | {"teacher_model_name_or_path": str(other)})
    with pytest.raises(ValueError, match="no teacher_model_name_or_path: name a larger model"):
        run(distill.main, options | {"teacher_model_name_or_path": None})
