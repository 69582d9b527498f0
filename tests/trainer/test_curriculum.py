"""The curriculum raises a task's level when it is mastered, makes the same problems again, and outlives a kill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from launching import launch
from stage_runs import command_line, log_lines, run, steps

from small_doge.rewards import REWARDS, Group
from small_doge.trainer.curriculum import Curriculum
from small_doge.trainer.doge import grpo

pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: install small-doge[reason]")


def curriculum(*tasks: str, window: int = 2) -> Curriculum:
    return Curriculum(tasks or ("chain_sum", "count_bits"), threshold=0.7, window=window, problems=40, seed=3)


def terms(problem: dict[str, Any]) -> int:
    return problem["metadata"]["num_terms"]


def test_a_mastered_task_rises_and_the_others_stay() -> None:
    made = curriculum()
    made.judge(["chain_sum", "count_bits", "chain_sum"], [0.8, 1.0, 0.5])
    assert made.levels == {"chain_sum": 0, "count_bits": 0}, "0.65 is below the threshold, one problem is no window"
    made.judge(["chain_sum"], [0.9])
    assert made.levels == {"chain_sum": 1, "count_bits": 0}
    assert made.figures() == {
        "curriculum/chain_sum/level": 1.0,
        "curriculum/count_bits/level": 0.0,
        "curriculum/count_bits/score": 1.0,
    }
    made.judge(["chain_sum"], [1.0])
    assert made.levels["chain_sum"] == 1, "the count began again"


def test_higher_levels_give_harder_problems_and_the_same_number_the_same_problem() -> None:
    made = curriculum("chain_sum", window=1)
    easy = [made.problem(index) for index in range(20)]
    assert easy == [curriculum("chain_sum").problem(index) for index in range(20)]
    made.judge(["chain_sum"] * 4, [1.0] * 4)
    hard = [made.problem(index) for index in range(20)]
    assert made.levels["chain_sum"] == 4
    assert max(map(terms, easy)) == 2 < max(map(terms, hard)) == 6
    assert min(map(terms, hard)) == 2, "easier problems stay in the mix"


def test_a_task_stays_at_its_highest_level() -> None:
    made = curriculum("chain_sum", window=1)
    made.judge(["chain_sum"] * 50, [1.0] * 50)
    assert made.levels == made.highest == {"chain_sum": 10}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("sums",), "reasoning-gym has no curriculum for 'sums': choose from "),
        (("knight_swap",), r"cannot make 'knight_swap' at level 0 \(min_nodes .*\): leave it out"),
    ],
    ids=["no such task", "a task whose first level is broken"],
)
def test_tasks_that_cannot_be_made_are_refused(tasks: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curriculum(*tasks)


@pytest.fixture
def options(model_folder: Path, tmp_path: Path, short_run: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model_folder),
        "output_dir": str(tmp_path / "out"),
        "curriculum": ["chain_sum", "count_bits"],
        "curriculum_window": 2,
        "reward_functions": ["gym", "digits"],
        "curriculum_reward": "digits",
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 8,
        "max_steps": 4,
        "learning_rate": 1e-3,
        **short_run,
    }


def test_a_run_goes_on_at_the_levels_of_its_checkpoint(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def easy_sums(group: Group) -> list[float | None]:
        """Pays for any answer to a sum, and nothing for the other task."""
        asked.append(str(group.metadata["source_dataset"]))
        return [float(asked[-1] == "chain_sum")] * len(group.texts)

    monkeypatch.setitem(REWARDS, "digits", easy_sums)
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = steps(run(grpo.main, options | saving))
    levels = [line["curriculum/chain_sum/level"] for line in whole]
    assert levels == [1, 2, 3, 4]
    assert {line["curriculum/count_bits/level"] for line in whole} == {0}
    assert {line["curriculum/count_bits/score"] for line in whole} == {0}
    assert set(asked) == {"chain_sum", "count_bits"}
    assert "level of chain_sum" in (Path(options["output_dir"]) / "report.html").read_text()

    # A run killed after its checkpoint of step 2 left that behind, and lines of what came later.
    killed = Path(shutil.copytree(options["output_dir"], tmp_path / "killed"))
    shutil.rmtree(killed / "checkpoint-4")
    (killed / "model.safetensors").unlink()
    again = steps(run(grpo.main, options | saving | {"output_dir": str(killed)}))
    kept = ("loss", "reward", "curriculum/chain_sum/level", "completions/mean_length", "grad_norm")
    assert [[line[key] for key in kept] for line in again] == [[line[key] for key in kept] for line in whole]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "a curriculum makes problems without end: set max_steps"),
        ({"dataset": "data"}, "the recipe has a data set and a curriculum: remove one of them"),
        ({"curriculum_reward": "accuracy"}, "curriculum_reward is 'accuracy': choose one of gym, digits"),
    ],
    ids=["no end", "two sources", "a reward that is not given"],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        run(grpo.main, options | changes)


@pytest.mark.slow
def test_two_processes_agree_on_the_levels(options: dict[str, Any]) -> None:
    # Any score raises, so a task rises whenever its window of 2 is full: twice in a step of 4 problems a task.
    changes = {"curriculum_threshold": 0.0, "reward_functions": ["gym"], "curriculum_reward": None}
    launch("ddp.yaml", command_line(options | changes), "grpo")
    lines = steps(log_lines(options["output_dir"]))
    assert [line["curriculum/chain_sum/level"] for line in lines] == [2, 4, 6, 8]
    assert [line["curriculum/count_bits/level"] for line in lines] == [2, 4, 4, 4], "its highest level"
