"""GRPO on a tiny model: rollouts through our engine, and what a run writes down."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stage_runs
import torch
from datasets import Dataset, DatasetDict

from small_doge import DogeForCausalLM
from small_doge.rewards import Group
from small_doge.trainer.doge import grpo
from small_doge.trainer.finetuning_arguments import ROLLOUT_ENGINES

PROBLEMS = 8


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("problems")
    rows = {
        "question": [f"What is {i} plus {i}?" for i in range(PROBLEMS)],
        "answer": [str(2 * i) for i in range(PROBLEMS)],
    }
    DatasetDict(train=Dataset.from_dict(rows), test=Dataset.from_dict(rows)).save_to_disk(str(folder))
    return folder


@pytest.fixture
def options(problems: Path, model_folder: Path, tmp_path: Path, short_run: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model_folder),
        "dataset": str(problems),
        "output_dir": str(tmp_path / "out"),
        "reward_functions": ["accuracy", "format"],
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 12,
        "max_steps": 2,
        "learning_rate": 1e-3,
        **short_run,
    }


def run(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[dict[str, Any]]]:
    """The trainer of a finished run, and the lines of its log."""
    made = []
    build = grpo.ReinforcementTrainer.__init__

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(grpo.ReinforcementTrainer, "__init__", remember)
    lines = stage_runs.run(grpo.main, options)
    return made[0], lines


@pytest.mark.parametrize("engine", ROLLOUT_ENGINES)
def test_a_run_logs_what_there_is_to_learn_from(engine, options, monkeypatch):
    trainer, lines = run(options | {"rollout_engine": engine, "beta": 0.01}, monkeypatch)
    assert type(trainer.ref_model) is type(trainer.model) is DogeForCausalLM
    parts = [f"rewards/{name}/{what}" for name in ("accuracy", "format") for what in ("mean", "std", "skipped")]
    figures = ["reward", "reward_group_std", "frac_reward_zero_std", "completions/mean_length", "entropy", "kl"]
    clipped = ["completions/clipped_ratio", "clip_ratio/region_mean"]
    ours = {f"rollouts/{name}" for name in ("tokens_per_second", "log_prob_difference", "log_prob_difference_max")}
    assert {*parts, *figures, *clipped} | (ours if engine == "slots" else set()) <= set(lines[0])
    if engine == "slots":
        assert 0 < lines[0]["rollouts/log_prob_difference"] <= lines[0]["rollouts/log_prob_difference_max"] < 1e-4


def test_log_probabilities_are_the_training_forwards(options, monkeypatch):
    seen = []
    generate = grpo.ReinforcementTrainer._generate_and_score_completions
    draw = grpo.SlotRollouts.__call__

    def remember_rollouts(self, prompts, trainer):
        seen.append(draw(self, prompts, trainer))
        return seen[-1]

    def compare(self, inputs):
        batch = generate(self, inputs)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        kept = batch["completion_ids"].shape[1]
        with torch.no_grad():
            forward = self._get_per_token_logps_and_entropies(self.model, ids, mask, kept)[0]
        for row, said in zip(forward, seen[-1]["logprobs"], strict=True):
            torch.testing.assert_close(row[: len(said)], torch.tensor(said), atol=1e-4, rtol=0)
        return batch

    monkeypatch.setattr(grpo.SlotRollouts, "__call__", remember_rollouts)
    monkeypatch.setattr(grpo.ReinforcementTrainer, "_generate_and_score_completions", compare)
    run(options | {"learning_rate": 0.05}, monkeypatch)
    # Twice, the second time after an optimizer step; and the completions of one prompt differ.
    assert len(seen) == 2
    assert len({tuple(ids) for ids in seen[0]["completion_ids"][:4]}) > 1
    assert seen[0]["prompt_ids"][0] == seen[0]["prompt_ids"][3] != seen[0]["prompt_ids"][4]


def test_at_another_temperature_the_engines_log_probabilities_are_left_out(options, monkeypatch):
    _, lines = run(options | {"temperature": 0.7, "max_steps": 1}, monkeypatch)
    assert "rollouts/tokens_per_second" in lines[0]
    assert "rollouts/log_prob_difference" not in lines[0]


def test_the_same_seed_gives_the_same_run(options, monkeypatch, tmp_path):
    logs = [run(options | {"output_dir": str(tmp_path / name)}, monkeypatch)[1] for name in ("a", "b")]
    first, second = ([line["loss"] for line in log if "loss" in line] for log in logs)
    assert first == second


def test_held_out_problems_are_measured_before_and_after_and_change_no_draw(options, monkeypatch, tmp_path):
    measured = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "num_generations_eval": 2}
    _, lines = run(options | measured, monkeypatch)
    assert [line["step"] for line in lines if "eval_reward" in line] == [0, 2]
    page = (Path(options["output_dir"]) / "report.html").read_text()
    assert "<h2>Held out</h2>" in page
    assert "<tr><td>rewards/accuracy/mean<td>" in page
    _, plain = run(options | {"output_dir": str(tmp_path / "plain")}, monkeypatch)
    for figure in ("reward", "completions/mean_length", "grad_norm"):
        found, expected = ([line[figure] for line in log if "loss" in line] for log in (lines, plain))
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_run_in_which_nothing_can_be_learnt_warns_once(caplog):
    watch = grpo.WarnWithoutSignal(patience=3)
    for share in (1.0, 1.0, 0.9, 1.0, 1.0):
        watch.on_log(None, None, None, {"frac_reward_zero_std": share})
    watch.on_log(None, None, None, {"loss": 1.0})
    assert not caplog.records, "a group with a signal begins the count anew, and other logs do not count"
    for _ in range(3):
        watch.on_log(None, None, None, {"frac_reward_zero_std": 1.0})
    (record,) = caplog.records
    assert "no group had two different rewards for 3 logs: make the task easier or harder." in record.getMessage()


def test_an_answer_that_cannot_be_read_is_skipped_and_counted(options, monkeypatch, tmp_path):
    rows = {"question": ["One?", "Two?"] * 4, "answer": ["1", "two"] * 4}
    DatasetDict(train=Dataset.from_dict(rows)).save_to_disk(str(tmp_path / "rows"))
    _, lines = run(options | {"dataset": str(tmp_path / "rows"), "shuffle_dataset": False}, monkeypatch)
    assert [line["rewards/accuracy/skipped"] for line in lines if "loss" in line] == [0.5, 0.5]
    assert [line["rewards/format/skipped"] for line in lines if "loss" in line] == [0, 0]


def test_the_reward_rises(options, monkeypatch):
    def share_of_letters(group: Group) -> list[float]:
        return [sum(character.isalpha() for character in text) / max(1, len(text)) for text in group.texts]

    monkeypatch.setattr(grpo, "get_reward", lambda name: share_of_letters)
    changes = {"max_steps": 40, "learning_rate": 0.02, "reward_functions": ["letters"], "lr_scheduler_type": "constant"}
    _, lines = run(options | changes, monkeypatch)
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2


def test_a_reward_sees_the_completions_of_a_prompt_together(monkeypatch):
    seen = []
    monkeypatch.setattr(
        grpo, "get_reward", lambda name, **options: lambda group: seen.append(group) or [1.0] * len(group.texts)
    )
    score = grpo.reward_function("length", {})
    prompts = [[{"role": "user", "content": text}] for text in "aabb"]
    completions = [[{"role": "assistant", "content": text}] for text in "wxyz"]
    metadata = ['{"source_dataset": "t"}'] * 2 + [{"source_dataset": None, "n": 1}] * 2
    ids = [[1], [1, 2], [3], []]
    assert (
        score(prompts, completions, ids, answer=["1", "1", "2", "2"], metadata=metadata, trainer_state=None)
        == [1.0] * 4
    )
    assert [list(group.texts) for group in seen] == [["w", "x"], ["y", "z"]]
    assert [group.lengths for group in seen] == [[1, 2], [1, 0]]
    assert [group.answer for group in seen] == ["1", "2"]
    assert [group.metadata for group in seen] == [{"source_dataset": "t"}, {"n": 1}]


def test_an_unknown_engine_is_refused(options):
    with pytest.raises(ValueError, match="rollout_engine is 'vllm'"):
        stage_runs.run(grpo.main, options | {"rollout_engine": "vllm"})


def test_a_model_that_the_engine_does_not_know_is_refused():
    other = SimpleNamespace(accelerator=SimpleNamespace(unwrap_model=lambda model: model), model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="this is a Linear: set rollout_engine: transformers"):
        grpo.SlotRollouts()._session_for(other, 1, 1)
