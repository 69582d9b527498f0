"""The laws give the papers' numbers, and a plan meets both of its anchors."""

from __future__ import annotations

import pytest

from small_doge.utils.scaling_laws import RELEASED_RUNS, chinchilla_loss, chinchilla_tokens, plan, step_law


def test_step_law_of_the_20m_run() -> None:
    rate, batch = step_law(4.73e6, 4.19e9)
    assert rate == pytest.approx(2.8e-2, rel=0.03)
    assert batch == pytest.approx(0.18e6, rel=0.03)


def test_chinchillas_own_model_is_near_its_optimum() -> None:
    # 70 B parameters, 1.4 T tokens; the fit's terms are 1.69 + 0.083 + 0.163.
    assert chinchilla_tokens(70e9) == 1.4e12
    assert chinchilla_loss(70e9, 1.4e12) == pytest.approx(1.937, abs=0.005)


@pytest.mark.parametrize("size", RELEASED_RUNS)
def test_a_plan_of_the_released_budget_is_the_released_run(size: str) -> None:
    run = RELEASED_RUNS[size]
    budget = plan(size, run.tokens)
    assert (budget.rows * 2048, budget.steps, budget.learning_rate) == (run.batch_tokens, run.steps, run.learning_rate)


def test_a_plan_of_the_short_track_is_the_short_track() -> None:
    budget = plan("20M", 70e6, "muon")
    assert (budget.rows, budget.steps) == (64, 534)
    assert (budget.learning_rate, budget.muon_learning_rate) == (1.6e-2, 0.02)


@pytest.mark.parametrize(
    ("size", "tokens", "message"),
    [("21M", 1e9, "choose one of 20M, 60M, 160M, 320M"), ("20M", 1e5, "give at least")],
    ids=["an unknown size", "too few tokens"],
)
def test_refuses(size: str, tokens: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(size, tokens)
