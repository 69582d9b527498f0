"""A stage in a process of its own. Not in a conftest: the process imports this by name, and there are many of those."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from launching import free_port

STAGES = ("pt", "sft", "dpo", "distill", "grpo")

Change = Callable[[], None]


def train(kind: str, argv: list[str], errors: str, environment: dict[str, str], change: Change | None) -> None:
    import torch

    from small_doge.trainer.recipe import run_stage

    os.environ |= environment
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    if change is not None:
        change()
    run_stage(import_module(f"small_doge.trainer.doge.{kind}").main, argv)


class Stage:
    """A stage in a process of its own that starts at once: the libraries are loaded once and forked."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        self.context: ForkServerContext = get_context("forkserver")
        self.context.set_forkserver_preload([f"small_doge.trainer.doge.{kind}" for kind in STAGES] + ["datasets"])
        first = self.context.Process(target=int)
        first.start()
        first.join()

    def start(self, argv: list[str], kind: str = "pt", change: Change | None = None, **environment: str) -> BaseProcess:
        """`change` is called in the process, before the stage."""
        process = self.context.Process(target=train, args=(kind, argv, str(self.errors), environment, change))
        process.start()
        return process

    def run(self, argv: list[str], kind: str = "pt") -> int | None:
        """Its exit code; a signal's is negative. What it said on standard error is in the file `errors`."""
        process = self.start(argv, kind)
        process.join(300)
        return process.exitcode

    def run_two(self, argv: list[str], change: Change | None = None) -> None:
        """Pretraining on two processes that find each other as those of a launcher do."""
        common = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        two = [self.start(argv, change=change, **common, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
        for process in two:
            process.join(300)
        assert [process.exitcode for process in two] == [0, 0], self.errors.read_text()


def exchange_after() -> None:
    """Exchange gradients after the backward pass, as between GPUs whose micro-batches are captured."""
    from torch.nn.parallel import DistributedDataParallel

    from small_doge.trainer.step_graph import GraphedSteps

    GraphedSteps._exchanges_after = lambda self: True  # type: ignore[method-assign]

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("DistributedDataParallel was used.")

    DistributedDataParallel.__init__ = refuse  # type: ignore[assignment, method-assign]
