"""The schedule's promise: a checkpoint of the stable phase goes on with new data, or decays to a finished model.

The rate of a stable checkpoint is the one it was training with, so going on needs no new warm-up: the optimizer's
moments come along, and the first new step is as long as the last old one (arXiv 2405.18392).
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from small_doge.utils.scaling_laws import RELEASED_RUNS

logger = logging.getLogger(__name__)

# Steps of warm-up where a checkpoint brings weights only: the new optimizer's moments have to fill first.
REWARM_STEPS = 100


@dataclass(frozen=True)
class StablePoint:
    """Where a run is taken up again.

    Attributes:
        path: The checkpoint.
        step: Steps that it was trained for.
        rates: Learning rate of each of its optimizer's groups; None where it brings weights only.
    """

    path: Path
    step: int
    rates: tuple[float, ...] | None


def stable_point(path: str, output_dir: str) -> StablePoint:
    """Read where a checkpoint stands in its schedule.

    Raises:
        ValueError: no such folder, one inside output_dir, a finished run's, or one outside its run's stable phase.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"continue_from: {path} holds no checkpoint: name a folder such as runs/Doge-20M/checkpoint-4000."
        )
    if folder.resolve().parent == Path(output_dir).resolve():
        raise ValueError(
            f"continue_from: {path} lies in output_dir: name another output_dir, so that the first run stays as it is."
        )
    if any(folder.glob("checkpoint-*/trainer_state.json")):
        raise ValueError(f"continue_from: {path} is of a whole run: name a checkpoint-STEP in it, of the stable phase.")
    if not (folder / "optimizer.pt").is_file() or not (folder / "scheduler.pt").is_file():
        return StablePoint(folder, 0, None)
    schedule = torch.load(folder / "scheduler.pt", weights_only=True)
    step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    if "stable_steps" not in schedule:
        raise ValueError(
            f"continue_from: {path} has no stable phase (its lr_scheduler_type is not warmup_stable_decay): "
            "start from its weights with model_name_or_path."
        )
    first = schedule["warmup_steps"]
    last = first + schedule["stable_steps"]
    if not first <= step <= last:
        phase = "warm-up" if step < first else "decay"
        raise ValueError(
            f"continue_from: {path} is of the {phase}: take a checkpoint of steps {first} to {last}, the stable phase."
        )
    return StablePoint(folder, step, tuple(schedule["base_lrs"]))


def prepare_continuation(args: Any) -> StablePoint | None:
    """Turn `continue_from` and `decay` into the rest of a recipe: whose weights, and which phases follow.

    Continuing has no warm-up and keeps the recipe's decay; decaying is a decay phase only. A checkpoint with weights
    only is warmed up for `REWARM_STEPS`, or a tenth of a shorter run.

    Raises:
        ValueError: see `stable_point`; or `decay` without `continue_from`, or another schedule than WSD.
    """
    if args.continue_from is None:
        if args.decay:
            raise ValueError("decay: name the checkpoint of the stable phase with continue_from.")
        return None
    if args.lr_scheduler_type != "warmup_stable_decay":
        raise ValueError("continue_from needs lr_scheduler_type: warmup_stable_decay.")
    point = stable_point(args.continue_from, args.output_dir)
    args.model_name_or_path, args.model_config = str(point.path), None
    args.warmup_steps = 0
    if point.rates is None and not args.decay:
        args.warmup_steps = min(REWARM_STEPS, max(1, args.max_steps // 10)) if args.max_steps > 0 else 0.1
    if point.rates is None:
        logger.warning(
            "%s brings no optimizer: its weights go on at the recipe's rate %g.", point.path, args.learning_rate
        )
    elif args.learning_rate not in point.rates:
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(point.rates))
        logger.warning("the checkpoint's learning rate (%s) is used, not the recipe's %g.", rates, args.learning_rate)
    return point


def take_over(optimizer: Optimizer, point: StablePoint) -> None:
    """Give a new optimizer the moments and learning rates of the checkpoint's.

    Raises:
        ValueError: the checkpoint's optimizer is of another kind or grouping.
    """
    if point.rates is None:
        return
    saved = torch.load(point.path / "optimizer.pt", map_location="cpu", weights_only=True)
    ours = optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in saved["param_groups"]] != [len(group["params"]) for group in ours]:
        raise ValueError(
            f"continue_from: the optimizer of {point.path} is not the recipe's: set `optimizer` as in its run."
        )
    optimizer.load_state_dict(saved)
    for group, rate in zip(optimizer.param_groups, point.rates, strict=True):
        group["lr"] = group["initial_lr"] = rate


def note_released_checkpoint(name: str) -> None:
    """Tell which rate a released `Doge-SIZE-checkpoint` goes on with; it is a checkpoint of the stable phase."""
    found = re.search(r"Doge-(\d+M)-checkpoint/?$", name)
    if found and found[1] in RELEASED_RUNS:
        logger.warning(
            "%s is of the stable phase, trained at a learning rate of %g; it brings weights only, so warm up again.",
            name,
            RELEASED_RUNS[found[1]].learning_rate,
        )
