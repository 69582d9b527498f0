"""A stable checkpoint goes on with other data at its rate without a spike, or decays to a finished model."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest

from small_doge.trainer.continuation import StablePoint, note_released_checkpoint
from small_doge.trainer.doge.pt import main
from small_doge.trainer.finetuning_arguments import SupervisedArguments
from small_doge.trainer.recipe import load_recipe
from small_doge.trainer.stage import StageTrainer


@pytest.fixture(scope="module")
def first(tmp_path_factory, new_recipe):
    """A run of 24 steps with checkpoints in its warm-up (step 4), stable phase (16) and decay (20)."""
    recipe = new_recipe(tmp_path_factory.mktemp("first"))
    main(recipe("run", max_steps=24, save_steps=4, save_total_limit=None, warmup_steps=6, decay_steps=6))
    return recipe


def checkpoint(first, step: int) -> str:
    return str(first.folder / "run" / f"checkpoint-{step}")


def test_other_data_goes_on_at_the_stated_rate_without_a_spike(first, other_rows_folder) -> None:
    changes = {"dataset": str(other_rows_folder), "max_steps": 12, "save_strategy": "no"}
    main(first("continued", continue_from=checkpoint(first, 16), decay_steps=0, **changes))
    rates, losses = first.log("continued", "learning_rate"), first.log("continued")
    assert set(rates.values()) == {1e-2}
    # The change of data alone: what the checkpoint's model, untouched, makes of the new rows.
    main(first("untouched", model_config=None, model_name_or_path=checkpoint(first, 16), learning_rate=0.0, **changes))
    jump = mean(first.log("untouched").values())
    assert max(losses.values()) < jump + 0.3
    assert losses[12] < losses[1] - 0.2


def test_a_checkpoint_decays_to_a_finished_model(first) -> None:
    argv = first("decayed", max_steps=8, save_strategy="no", learning_rate=3e-3)
    main([*argv, "--continue-from", checkpoint(first, 16), "--decay"])
    rates = list(first.log("decayed", "learning_rate").values())
    assert rates[0] == 1e-2
    assert rates == pytest.approx([1e-2 * (1 - step / 8) for step in range(8)])
    assert mean(list(first.log("decayed").values())[-4:]) < first.log("run")[16]
    assert (first.folder / "decayed" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"continue_from": 4}, "of the warm-up: take a checkpoint of steps 6 to 18"),
        ({"continue_from": 20}, "of the decay: take a checkpoint of steps 6 to 18"),
        ({"continue_from": 16, "optimizer": "muon"}, "set `optimizer` as in its run"),
        ({"continue_from": 16, "lr_scheduler_type": "cosine"}, "needs lr_scheduler_type"),
        ({"decay": True}, "name the checkpoint of the stable phase"),
        ({"continue_from": "nowhere"}, "holds no checkpoint"),
    ],
    ids=["warm-up", "decay", "another optimizer", "another schedule", "decay of nothing", "no folder"],
)
def test_refuses(first, changes: dict, message: str) -> None:
    if isinstance(changes.get("continue_from"), int):
        changes = changes | {"continue_from": checkpoint(first, changes["continue_from"])}
    with pytest.raises(ValueError, match=message):
        main(first("refused", **changes))


def test_refuses_a_run_that_is_finished(first) -> None:
    with pytest.raises(ValueError, match="is of a whole run: name a checkpoint-STEP in it"):
        main(first("again", continue_from=str(first.folder / "run")))


def test_refuses_the_first_runs_own_folder(first) -> None:
    with pytest.raises(ValueError, match="name another output_dir"):
        main(first("run", continue_from=checkpoint(first, 16)))


def test_only_pretraining_has_a_stable_phase_to_go_on_from(tmp_path: Path) -> None:
    argv = ["--output_dir", str(tmp_path), "--continue_from", "runs/Doge-20M/checkpoint-4000", "--use_cpu", "true"]
    with pytest.raises(ValueError, match="no option 'continue_from' in SupervisedArguments"):
        load_recipe(SupervisedArguments, argv)


def test_sharded_engines_are_refused() -> None:
    point = StablePoint(Path("checkpoint-1"), 1, (1e-2,))
    trainer = SimpleNamespace(optimizer=None, continued=point, model=None, is_fsdp_enabled=True)
    trainer._new_optimizer = lambda model: object()
    with pytest.raises(ValueError, match="under single_gpu or ddp"):
        StageTrainer.create_optimizer(trainer)


def test_a_released_stable_checkpoint_is_told_its_rate(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        note_released_checkpoint("SmallDoge/Doge-60M-checkpoint")
        note_released_checkpoint("SmallDoge/Doge-60M")
    (record,) = caplog.records
    assert "trained at a learning rate of 0.006" in record.getMessage()
