"""The printed tokens/s, time left and MFU are what a clock and a data sheet say."""

from __future__ import annotations

import pytest

from small_doge.utils.hardware import mfu, peak_flops
from small_doge.utils.throughput import ThroughputMeter, clock_time


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rate_is_over_the_last_window_and_pace_over_all() -> None:
    clock = Clock()
    meter = ThroughputMeter(clock)
    meter.start(tokens=500, step=10)
    clock.now += 2.0
    meter.update(tokens=1500, step=12)
    assert meter.tokens_per_second == pytest.approx(500.0)
    clock.now += 4.0
    meter.update(tokens=2300, step=16)
    assert meter.tokens_per_second == pytest.approx(200.0)
    assert meter.seconds_per_step == pytest.approx(1.0)
    assert meter.seconds_left(total_steps=20) == pytest.approx(4.0)
    assert meter.average_tokens_per_second == pytest.approx(300.0)


def test_nothing_is_claimed_before_the_first_step() -> None:
    meter = ThroughputMeter(Clock())
    meter.start(0, 0)
    assert meter.seconds_left(10) is None
    assert meter.average_tokens_per_second is None


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03")], ids=str)
def test_clock_time(seconds: float | None, text: str) -> None:
    assert clock_time(seconds) == text


def test_mfu_of_a_known_gpu_and_none_of_an_unknown_one() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA L40") == 181e12
    assert peak_flops("NVIDIA GeForce RTX 4090") == 165e12
    assert mfu(104e6, 1_000_000, "NVIDIA H100 80GB HBM3") == pytest.approx(104e12 / 989e12)
    assert mfu(104e6, 1_000_000, "NVIDIA H100 80GB HBM3", devices=2) == pytest.approx(52e12 / 989e12)
    assert mfu(104e6, 1_000_000, "Some Future GPU") is None


@pytest.mark.parametrize(
    "name", ["NVIDIA RTX A4000", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3080 Ti", "NVIDIA H1000"]
)
def test_a_gpu_whose_name_is_only_like_a_known_one_has_no_peak(name: str) -> None:
    assert peak_flops(name) is None
