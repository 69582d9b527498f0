"""Running out of memory is told with the micro-batch that would have fitted."""

from __future__ import annotations

import pytest
import torch

from small_doge import DogeForCausalLM
from small_doge.trainer.doge.pt import main
from small_doge.trainer.memory import largest_that_fits


@pytest.mark.parametrize("fits", range(8))
def test_finds_the_largest_that_fits(fits: int) -> None:
    def attempt(n: int) -> None:
        if n > fits:
            raise torch.OutOfMemoryError

    assert largest_that_fits(attempt, 8) == fits


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (5, "5 is the largest that fits .* per_device_train_batch_size: 4 and gradient_accumulation_steps: 4 "),
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
