"""Checkpoints that are whole or absent: written aside, then renamed; and the way back from the last one."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import rotate_checkpoints

from small_doge.trainer.adapters import ADAPTER_FOLDER, merge_adapter

logger = logging.getLogger(__name__)

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
        if not _disk_is_full(error, folder):
            raise
        kept = last_checkpoint(folder)
        safe = f"the last complete checkpoint is {kept}" if kept else "no earlier checkpoint exists there"
        raise OSError(
            errno.ENOSPC, f"the disk is full while saving {what} to {folder}: free some space and run again; {safe}"
        ) from error


def _disk_is_full(error: Exception, folder: str | os.PathLike[str]) -> bool:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return True
    # safetensors reports the system's error inside a type of its own, and torch.save only that its archive broke off.
    if "No space left" in str(error) or "os error 28" in str(error):
        return True
    return "inline_container" in str(error) and shutil.disk_usage(folder).free < 2**20


def warn_of_little_space(folder: str | os.PathLike[str], trained: int, kept: int | None) -> None:
    """Say beforehand that a disk will not hold the checkpoints to keep and one more: 12 bytes a trained parameter."""
    needed = 12 * trained * ((kept or 2) + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        logger.warning(
            "%s has %.1f GB free, and its checkpoints need about %.1f: free some space or lower save_total_limit.",
            folder,
            free / 1e9,
            needed / 1e9,
        )


class AtomicCheckpoints:
    """Mixin for transformers' Trainer: a kill or a full disk while saving leaves the earlier checkpoints as they
    were.

    The newest `save_total_limit` are kept, and never fewer than two, so that the one before the last stays.
    """

    _staging: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        args, state = self.args, self.state  # type: ignore[attr-defined]
        folder = Path(self._get_output_dir(trial))
        staging = folder / STAGING
        name = f"checkpoint-{state.global_step}"
        _clear(staging, self)
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
            (staging / name / "training_args.bin").unlink(missing_ok=True)  # A pickle, and recipe.yaml says the same.
            _sync(staging / name)
            os.replace(staging / name, folder / name)
            _sync_folder(folder)
            shutil.rmtree(staging, ignore_errors=True)
            limit = max(2, args.save_total_limit) if args.save_total_limit else None
            rotate_checkpoints(output_dir=str(folder), save_total_limit=limit)


def save_finished(trainer: Any, tokenizer: Any) -> None:
    """Save a finished model to output_dir as a Hugging Face folder: written aside, then moved in, the weights last.

    Adapters are merged into it, and stand in the folder `adapter` beside it.
    """
    folder = Path(trainer.args.output_dir)
    staging = folder / STAGING
    _clear(staging, trainer)
    with disk_errors("the finished model", folder):
        merge_adapter(trainer, staging / ADAPTER_FOLDER)
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
    _sync_folder(folder)
    shutil.rmtree(staging, ignore_errors=True)


def _clear(staging: Path, trainer: Any) -> None:
    """Remove what a killed run left there; no process goes on, and so writes into it, before that is done."""
    if trainer.args.should_save:
        shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _sync(folder: Path) -> None:
    """Flush a folder's files and names to the disk, so that the rename never outruns the data."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
