"""The page on many GPUs says what the formulas give."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_doge import DogeConfig
from small_doge.models.doge.accounting_doge import count_parameters, training_flops_per_token
from small_doge.utils.many_gpus import Cluster, step_on_paper
from small_doge.utils.scaling_laws import RELEASED_RUNS

PAGE = Path(__file__).parents[2] / "docs/many_gpus.md"


def test_a_step_by_hand() -> None:
    step = step_on_paper(1000, 6000.0, rows=8, gpus=4, length=10, cluster=Cluster(1e6, 0.5, 1e5, 0.0))
    # 2 rows of 10 tokens of 6,000 FLOPs at 0.5 MFLOP/s; 2 * 3/4 * 4,000 bytes at 100 kB/s.
    assert (step.rows, step.compute, step.exchanged_bytes, step.exchange) == (2, 0.24, 6000, 0.06)
    assert step.efficiency == 1.0
    slow = step_on_paper(1000, 6000.0, rows=8, gpus=4, length=10, cluster=Cluster(1e6, 0.5, 1e4, 0.0))
    assert slow.efficiency == pytest.approx(0.24 / (0.24 + 0.6 - 0.16))


def test_more_gpus_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="8 rows a step cannot be divided over 9 GPUs"):
        step_on_paper(1000, 6000.0, rows=8, gpus=9)


@pytest.mark.parametrize("size", RELEASED_RUNS)
def test_the_pages_table_is_recomputed(size: str) -> None:
    page = PAGE.read_text()
    config = DogeConfig.from_size(size)
    rows = RELEASED_RUNS[size].batch_tokens // 2048
    for gpus in (64, 128, 256, 512, 1024):
        if gpus <= rows:
            step = step_on_paper(count_parameters(config).total, training_flops_per_token(config, 2048), rows, gpus)
            assert (
                f"| {size} | {gpus} | {step.rows:g} | {1e3 * step.compute:.1f} | {step.exchanged_bytes / 1e6:,.0f} | "
                f"{1e3 * step.exchange:.1f} | {step.efficiency:.0%} |"
            ) in page
