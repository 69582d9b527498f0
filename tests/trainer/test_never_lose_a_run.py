"""A run killed at any moment goes on from its last whole checkpoint, and its losses are those of one never killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest


def kill_and_finish(recipe, stage, kills: int, **changes) -> None:
    """Kill a run at random moments, let it finish, and compare it with one that was never killed."""
    began = time.monotonic()
    assert stage.run(recipe("whole", **changes)) == 0
    seconds = time.monotonic() - began
    rng = random.Random(0)
    argv = recipe("killed", **changes)
    killed = 0
    while killed < kills:
        process = stage.start(argv)
        process.join(rng.uniform(0.1 * seconds, 0.9 * seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        else:
            shutil.rmtree(recipe.folder / "killed")
        process.join()
    assert stage.run(argv) == 0
    for figure in ("loss", "grad_norm", "learning_rate"):
        assert recipe.log("killed", figure) == recipe.log("whole", figure)
    for name in ("whole", "killed"):
        assert sorted(path.name for path in (recipe.folder / name).glob("checkpoint-*")) == [
            "checkpoint-12",
            "checkpoint-15",
        ]
    assert weights(recipe.folder / "killed") == weights(recipe.folder / "whole")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_kills_change_no_loss(recipe, stage, optimizer: str) -> None:
    # 15 steps are one pass over the data and a part of the next; Muon's run logs windows that no checkpoint falls on.
    kills, window = (2, 4) if optimizer == "muon" else (1, 1)
    kill_and_finish(recipe, stage, kills, optimizer=optimizer, max_steps=15, logging_steps=window)


def test_a_run_killed_after_its_last_checkpoint_trains_no_further(recipe, stage) -> None:
    argv = recipe("run", max_steps=6)
    assert stage.run(argv) == 0
    finished = recipe.folder / "run" / "model.safetensors"
    before, losses = finished.read_bytes(), recipe.log("run")
    finished.unlink()
    assert stage.run(argv) == 0
    assert finished.read_bytes() == before
    assert recipe.log("run") == losses
    said = stage.errors.read_text()
    assert "going on from" in said
    assert "missing" not in said, "a tied head is saved as the embedding, and nothing is amiss"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_twenty_kills_change_no_loss(recipe, stage, optimizer: str) -> None:
    kill_and_finish(recipe, stage, kills=20, optimizer=optimizer, max_steps=15)


def test_sigterm_saves_the_step_at_hand_and_the_run_goes_on_alike(recipe, stage) -> None:
    changes = {"save_steps": 100, "max_steps": 40}
    argv = recipe("stopped", **changes)
    process = stage.start(argv)
    log = recipe.folder / "stopped" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() or not log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert not (recipe.folder / "stopped" / "model.safetensors").exists()
    (saved,) = (recipe.folder / "stopped").glob("checkpoint-*")
    assert max(recipe.log("stopped")) == int(saved.name.removeprefix("checkpoint-")) < 40
    assert stage.run(argv) == 0
    assert stage.run(recipe("whole", **changes)) == 0
    assert recipe.log("stopped") == recipe.log("whole")


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(recipe, stage, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    # Room for about two and a half checkpoints of the tiny model.
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a file system of a given size")
    try:
        argv = [*recipe("full"), "--output_dir", str(small / "run")]
        assert stage.run(argv) == 1
        message = stage.errors.read_text()
        assert "the disk is full while saving checkpoint-" in message
        kept = sorted(path.name for path in (small / "run").glob("checkpoint-*"))
        assert kept
        assert f"the last complete checkpoint is {small / 'run' / kept[-1]}" in message.replace("\n", "")
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        assert stage.run(argv) == 0
        assert stage.run(recipe("whole")) == 0
        assert weights(small / "run") == weights(recipe.folder / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)
