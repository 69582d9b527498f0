"""Checkpoints that are whole or absent: written aside, then renamed; and the way back from the last one."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import rotate_checkpoints

STAGING = ".incomplete"


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The checkpoint of the most steps in `folder`; every `checkpoint-N` there is complete, since it was renamed
    into place.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    steps = {int(m[1]): path for path in folder.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    return str(steps[max(steps)]) if steps else None


@contextmanager
def disk_errors(what: str, folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a full disk into one line that says what is still safe."""
    try:
        yield
    except Exception as error:
        # safetensors reports the system's error inside a type of its own.
        full = (
            getattr(error, "errno", None) == errno.ENOSPC
            or "No space left" in str(error)
            or "os error 28" in str(error)
        )
        if not full:
            raise
        kept = last_checkpoint(folder)
        safe = f"the last complete checkpoint is {kept}" if kept else "no earlier checkpoint exists there"
        raise OSError(
            errno.ENOSPC, f"the disk is full while saving {what} to {folder}: free some space and run again; {safe}"
        ) from error


class AtomicCheckpoints:
    """Mixin for transformers' Trainer: a kill or a full disk while saving leaves the earlier checkpoints as they
    were.
    """

    _staging: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        args, state = self.args, self.state  # type: ignore[attr-defined]
        folder = Path(self._get_output_dir(trial))
        staging = folder / STAGING
        name = f"checkpoint-{state.global_step}"
        if args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        try:
            with disk_errors(name, folder):
                self._staging = str(staging)
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except BaseException:
            if args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]
        if args.should_save:
            shutil.rmtree(folder / name, ignore_errors=True)
            _sync(staging / name)
            os.replace(staging / name, folder / name)
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(output_dir=str(folder), save_total_limit=args.save_total_limit, use_mtime=True)


def save_finished(trainer: Any, tokenizer: Any) -> None:
    """Save a finished model to output_dir as a Hugging Face folder: written aside, then moved in, the weights last."""
    folder = Path(trainer.args.output_dir)
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    with disk_errors("the finished model", folder):
        trainer.save_model(str(staging))
        if trainer.args.should_save:
            tokenizer.save_pretrained(str(staging))
    trainer.accelerator.wait_for_everyone()
    if not trainer.args.should_save:
        return
    _sync(staging)
    files = sorted(staging.iterdir(), key=lambda path: path.suffix == ".safetensors")
    for path in files:
        if path.name != "training_args.bin":
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
    shutil.rmtree(staging, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flush a folder's files to the disk, so that the rename never outruns the data."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
