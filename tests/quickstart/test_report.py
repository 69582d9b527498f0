"""The report: one page that loads nothing, says what was measured, and shows a stage's curve however short."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from small_doge.quickstart.charts import PAGE_COLORS, chart, smoothed
from small_doge.quickstart.figures import figures_of
from small_doge.quickstart.page import as_html, speed
from small_doge.quickstart.report import as_markdown

REPORT = {
    "pretrain": {
        "parameters": 2_000_000,
        "bits_per_byte": 1.75,
        "gzip_bits_per_byte": 2.61,
        "ratio": 0.6705,
        "held_out_bytes": 324_630,
    },
    "sft": {"answer_loss_before": 4.1, "answer_loss_after": 1.9, "n": 300},
    "dpo": {
        "accuracy_before": 0.83,
        "accuracy_after": 0.88,
        "accuracy_change_ci95": [0.02, 0.08],
        "reward_accuracy": 0.9,
        "reward_margin": 7.2,
        "reward_margin_ci95": [6.6, 7.8],
        "answer_loss_before": 2.0,
        "answer_loss_after": 1.9,
        "n": 800,
    },
    "distill": {"format_rate": 0.97, "format_rate_ci95": [0.95, 0.98], "n": 500},
    "grpo": {"accuracy_before": 0.35, "accuracy_after": 0.52, "n": 500, "ci95": {"change": [0.12, 0.22]}},
    "seconds": {"pretrain": 400.0, "grpo": 200.0, "total": 600.0},
    "restarts": {},
    "samples": [{"question": "Where?", "answer": "<script src=http://x.org/a.js></script> at http://x.org"}],
    "versions": {"python": "3.11"},
    "device": "a CPU",
    "settings": {"seed": 233},
}
LoadsOf = Callable[[str], list[str]]
CURVES = {
    "pretrain": [{"step": s, "loss": 7.0 - s, "tokens_per_second": 4000.0 + s} for s in range(1, 6)],
    "grpo": [{"step": 1, "loss": 0.0, "reward": 0.4}, {"step": 2, "loss": 0.0, "reward": 0.5}],
}


def page_of(report: dict) -> str:
    return as_html(report, figures_of(report), CURVES, {"pretrain": "seed: 233\n", "grpo": ""})


def test_the_page_loads_and_runs_nothing_even_where_the_model_says_so(loads_of: LoadsOf) -> None:
    page = page_of(REPORT)
    assert loads_of(page) == []
    assert "&lt;script src=http://x.org/a.js&gt;" in page


def test_the_check_would_see_a_page_that_loads_something(loads_of: LoadsOf) -> None:
    assert loads_of("<link href='a.css'><img src=http://x.org/a.png>") == [
        "link",
        "link href=a.css",
        "img src=http://x.org/a.png",
    ]
    assert loads_of("<style>@import 'a.css';</style>") == ["style"]


def test_the_page_shows_a_curve_for_each_stage_that_logged_and_the_reward_of_grpo() -> None:
    page = page_of(REPORT)
    assert page.count("<svg") == 2
    assert "pretrain: loss by step" in page and "grpo: reward by step" in page


def test_the_markdown_twin_holds_the_same_figures() -> None:
    text = as_markdown(REPORT, figures_of(REPORT), {"pretrain": "seed: 233\n", "grpo": ""})
    assert "| grpo | arithmetic problems solved | 35.0% | 52.0% | +12.0 to +22.0 points |" in text
    assert "| dpo | loss on chosen answers | 2.00 | 1.90 |  | nats a token; -5.0% |" in text
    assert "pretrain:\n\n```yaml\nseed: 233\n```" in text
    assert "grpo:\n" not in text
    for figure in figures_of(REPORT):
        assert figure.after in page_of(REPORT)


def test_a_resumed_run_says_so_in_both() -> None:
    report = copy.deepcopy(REPORT) | {"restarts": {"sft": 1}}
    assert "Interrupted and resumed: sft." in page_of(report)
    assert "Interrupted and resumed: sft." in as_markdown(report, figures_of(report), {})


def test_a_drawing_takes_its_colors_from_the_page() -> None:
    drawing = chart("sft: loss", CURVES["pretrain"], "loss")
    assert all(name in drawing for name in PAGE_COLORS.values())
    assert not any(color in drawing for color in PAGE_COLORS)


def test_a_running_mean_starts_at_the_first_value_and_stays_on_a_level() -> None:
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smoothed([1.0, 2.0], weight=0.5) == pytest.approx([1.0, 2.5 / 1.5])


def test_the_rate_shown_is_the_median_of_those_logged() -> None:
    assert speed(CURVES["pretrain"]) == "4,003"
    assert speed([{"step": 1}]) == ""
