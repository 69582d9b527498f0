"""The schedule is transformers' own curve, for every shape, and survives a save."""

from __future__ import annotations

import pytest
import torch
from transformers import get_wsd_schedule

from small_doge.utils.scheduler import SHAPES, WSDScheduler


def optimizer(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates_of(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append(list(scheduler.get_last_lr()))
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("decay_type", sorted(SHAPES))
@pytest.mark.parametrize("warmup_type", sorted(SHAPES))
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_curve_equals_transformers(warmup_type: str, decay_type: str, min_lr_ratio: float) -> None:
    shapes = {"warmup_type": warmup_type, "decay_type": decay_type, "min_lr_ratio": min_lr_ratio}
    ours = WSDScheduler(optimizer(8e-3, 2e-2), warmup_steps=10, stable_steps=20, decay_steps=15, **shapes)
    theirs = get_wsd_schedule(
        optimizer(8e-3, 2e-2), num_warmup_steps=10, num_stable_steps=20, num_decay_steps=15, **shapes
    )
    assert torch.allclose(torch.tensor(rates_of(ours, 50)), torch.tensor(rates_of(theirs, 50)), atol=1e-12)


def test_the_seeds_call_peaks_at_max_lr_and_ends_at_min_lr() -> None:
    scheduler = WSDScheduler(
        optimizer(1.0), warmup_steps=800, stable_steps=6400, decay_steps=800, max_lr=8e-3, min_lr=8e-5
    )
    rates = [rate for (rate,) in rates_of(scheduler, 8100)]
    assert rates[0] == pytest.approx(8e-5)
    assert rates[800] == rates[7199] == pytest.approx(8e-3)
    assert rates[8000] == rates[8099] == pytest.approx(8e-5)
    assert max(rates) == pytest.approx(8e-3)


def test_a_loaded_state_goes_on_where_the_saved_one_stood() -> None:
    whole = rates_of(WSDScheduler(optimizer(1.0), 5, 5, 5), 20)
    first = WSDScheduler(optimizer(1.0), 5, 5, 5)
    head = rates_of(first, 8)
    second = WSDScheduler(optimizer(1.0), 5, 5, 5)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert head + rates_of(second, 12) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay_steps": -1}, "decay_steps is -1"),
        ({"decay_type": "square"}, "choose one of linear, cosine, 1-sqrt"),
        ({"min_lr": 0.1, "min_lr_ratio": 0.1}, "give one"),
        ({"max_lr": 0.1, "min_lr": 0.2}, "above the peak"),
    ],
    ids=["a negative phase", "an unknown shape", "two minima", "a minimum above the peak"],
)
def test_refuses(arguments: dict, message: str) -> None:
    steps = {"warmup_steps": 1, "stable_steps": 1, "decay_steps": 1}
    with pytest.raises(ValueError, match=message):
        WSDScheduler(optimizer(1.0), **(steps | arguments))
