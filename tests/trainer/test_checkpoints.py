"""A checkpoint is whole or absent, whatever happens while it is saved."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from small_doge.trainer.checkpoints import (
    STAGING,
    AtomicCheckpoints,
    disk_errors,
    last_checkpoint,
    warn_of_little_space,
)


class Accelerator:
    def wait_for_everyone(self) -> None:
        pass


class Arguments:
    should_save = True
    save_total_limit = 2


class State:
    global_step = 0


class Saver:
    """What transformers' Trainer does, as far as the mixin sees it; `fail` breaks off in the middle."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.args, self.state, self.accelerator = folder, Arguments(), State(), Accelerator()
        self.fail: BaseException | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        target = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        target.mkdir(parents=True)
        (target / "model.safetensors").write_text("weights")
        if self.fail:
            raise self.fail
        (target / "trainer_state.json").write_text("{}")


class Trainer(AtomicCheckpoints, Saver):
    def save(self, step: int, fail: BaseException | None = None) -> None:
        self.state.global_step, self.fail = step, fail
        self._save_checkpoint(None, None)


def test_the_last_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "absent") is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x", STAGING):
        (tmp_path / name).mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize(
    "failure",
    [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), RuntimeError("os error 28")],
    ids=repr,
)
def test_a_broken_save_leaves_the_earlier_checkpoint_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    trainer = Trainer(tmp_path)
    trainer.save(1)
    with pytest.raises((KeyboardInterrupt, OSError)):
        trainer.save(2, failure)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").exists()
    trainer.save(2)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_kill_leaves_a_staging_folder_that_the_next_save_clears(tmp_path: Path) -> None:
    (tmp_path / STAGING / "checkpoint-1").mkdir(parents=True)
    assert last_checkpoint(tmp_path) is None
    Trainer(tmp_path).save(1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_older_checkpoints_go_and_the_previous_one_stays(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    for step in (1, 2, 3):
        trainer.save(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_a_full_disk_is_told_in_one_line_with_what_is_safe(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    with (
        pytest.raises(OSError, match="the disk is full while saving checkpoint-8") as error,
        disk_errors("checkpoint-8", tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "checkpoint-7" in str(error.value)
    with pytest.raises(OSError, match="read-only"), disk_errors("checkpoint-8", tmp_path):
        raise OSError(errno.EROFS, "read-only")


def test_a_disk_too_small_for_the_checkpoints_is_told_beforehand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_little_space(tmp_path, trained=1000, kept=3)
    assert not caplog.records
    warn_of_little_space(tmp_path, trained=10**15, kept=3)
    assert "lower save_total_limit" in caplog.text
