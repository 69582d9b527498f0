"""The table of a report: what each stage was measured by, before and after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        stage: The stage that made the difference.
        what: What was measured.
        before: Before the stage, or the yardstick.
        after: After it.
        interval: 95 % interval of the change, or of the share where there is no before.
        how: Number of items and unit.
        headline: A few words for the large print on top; empty for figures that stand in the table alone.
    """

    stage: str
    what: str
    before: str
    after: str
    interval: str
    how: str
    headline: str = ""


def figures_of(report: dict[str, Any]) -> list[Figure]:
    """The lines of the table, from what report.json holds."""
    pretrain, sft, dpo, distill, grpo = (report[name] for name in ("pretrain", "sft", "dpo", "distill", "grpo"))
    return [
        Figure(
            "pretrain",
            "bits per byte of text",
            f"{pretrain['gzip_bits_per_byte']:.2f}",
            f"{pretrain['bits_per_byte']:.2f}",
            "",
            f"before: gzip -9; ratio {pretrain['ratio']:.2f}, {pretrain['held_out_bytes']:,} bytes",
            "bits per byte, beside gzip -9",
        ),
        Figure(
            "sft",
            "loss on answers",
            f"{sft['answer_loss_before']:.2f}",
            f"{sft['answer_loss_after']:.2f}",
            "",
            f"nats a token, n = {sft['n']}",
            "loss on answers",
        ),
        Figure(
            "dpo",
            "preference accuracy",
            percent(dpo["accuracy_before"]),
            percent(dpo["accuracy_after"]),
            points(dpo["accuracy_change_ci95"]),
            f"the chosen answer is likelier a token, n = {dpo['n']} pairs",
            "preference accuracy",
        ),
        Figure(
            "dpo",
            "reward margin, chosen over rejected",
            "0.00",
            f"{dpo['reward_margin']:.2f}",
            span(dpo["reward_margin_ci95"]),
            f"nats a pair, against the model before; positive in {percent(dpo['reward_accuracy'])}",
        ),
        Figure(
            "dpo",
            "loss on chosen answers",
            f"{dpo['answer_loss_before']:.2f}",
            f"{dpo['answer_loss_after']:.2f}",
            "",
            f"nats a token; {dpo['answer_loss_after'] / dpo['answer_loss_before'] - 1:+.1%}",
        ),
        Figure(
            "distill",
            "answers with well-formed thinking",
            "",
            percent(distill["format_rate"]),
            percents(distill["format_rate_ci95"]),
            f"greedy, n = {distill['n']}",
            "well-formed thinking",
        ),
        Figure(
            "grpo",
            "arithmetic problems solved",
            percent(grpo["accuracy_before"]),
            percent(grpo["accuracy_after"]),
            points(grpo["ci95"]["change"]),
            f"greedy, n = {grpo['n']}, the same problems",
            "arithmetic solved",
        ),
    ]


def percent(share: float) -> str:
    return f"{share:.1%}"


def percents(ends: list[float]) -> str:
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def points(ends: list[float]) -> str:
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} points"


def span(ends: list[float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"
