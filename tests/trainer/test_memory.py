"""Running out of memory is told with the micro-batch that would have fitted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from small_doge import DogeForCausalLM
from small_doge.trainer.doge.pt import main
from small_doge.trainer.memory import largest_that_fits, out_of_memory_advice


@pytest.mark.parametrize("fits", range(8))
def test_finds_the_largest_that_fits(fits: int) -> None:
    def attempt(n: int) -> None:
        if n > fits:
            raise torch.OutOfMemoryError

    assert largest_that_fits(attempt, 8) == fits


@pytest.mark.parametrize(
    ("rows", "accumulation", "processes", "length", "message"),
    [
        (8, 3, 2, 32, "8 rows of 32 tokens: set per_device_train_batch_size: 4 and gradient_accumulation_steps: 6 for"),
        (8, 3, 1, None, "8 rows: set per_device_train_batch_size: 4 and gradient_accumulation_steps: 6 for"),
        (
            5,
            3,
            2,
            32,
            "5 rows of 32 tokens: set per_device_train_batch_size: 1 and gradient_accumulation_steps: 15 for",
        ),
        (1, 3, 2, 32, "one row of 32 tokens: take a smaller model"),
        (1, 3, 1, None, "one row: take a smaller model"),
    ],
    ids=["two processes", "a stage of other batches", "an odd batch", "one row, two processes", "one row"],
)
def test_where_nothing_can_be_tried_the_advice_keeps_the_batch(
    rows: int, accumulation: int, processes: int, length: int | None, message: str
) -> None:
    args = SimpleNamespace(
        per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation, world_size=processes
    )
    assert f"out of memory with a micro-batch of {message}" in out_of_memory_advice(SimpleNamespace(args=args), length)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (5, "5 is the largest that fits .* set per_device_train_batch_size: 4 and gradient_accumulation_steps: 4 "),
        (0, "a single row does not fit either"),
    ],
    ids=["five rows fit", "none fits"],
)
def test_the_advice_names_a_micro_batch_and_keeps_the_batch(recipe, monkeypatch, limit: int, message: str) -> None:
    forward = DogeForCausalLM.forward

    def limited(self, input_ids=None, **kwargs):
        if len(input_ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(DogeForCausalLM, "forward", limited)
    with pytest.raises(ValueError, match=f"out of memory with a micro-batch of 8 rows of 32 tokens.*{message}"):
        main(recipe("run", per_device_train_batch_size=8))


def test_the_advice_takes_back_what_chose_the_micro_batch() -> None:
    args = SimpleNamespace(
        per_device_train_batch_size=8, gradient_accumulation_steps=1, world_size=2, auto_micro_batch=True
    )
    advice = out_of_memory_advice(SimpleNamespace(args=args), 32)
    assert "set auto_micro_batch: false, per_device_train_batch_size: 4" in advice
