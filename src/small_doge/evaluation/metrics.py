"""What lm-eval calls on each generated answer, where its own metrics do not fit."""

from __future__ import annotations

import json
from typing import Any

from small_doge.evaluation.ifeval import follows, variants
from small_doge.rewards.answers import final_number, mathematics
from small_doge.rewards.thinking import split_thinking


def answer_part(text: str) -> str:
    """What follows the thoughts, or the whole text where there are none."""
    parts = split_thinking(text)
    return parts[1] if parts else text


def same_number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last number of the answer is the one that the solution ends with (GSM8K: `#### n`)."""
    gold = final_number(doc["answer"])
    return {"exact_match": float(gold is not None and final_number(answer_part(results[0])) == gold)}


def same_mathematics(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer's last expression equals the reference, as math-verify judges it."""
    return {"exact_match": mathematics(answer_part(results[0]), doc["answer"]) or 0.0}


def followed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """IFEval: whether all instructions of a prompt are followed, and which share of them; strictly, and loosely.

    Loosely means in any of the answer's `variants`. The share is by prompt, where the paper's instruction level is over
    all instructions at once.
    """
    settings = json.loads(doc["kwargs"])
    answer = results[0]
    found: dict[str, float] = {}
    for name, texts in (("strict", [answer]), ("loose", variants(answer))):
        good = [
            any(follows(instruction, text, doc["prompt"], setting) for text in texts)
            for instruction, setting in zip(doc["instruction_id_list"], settings, strict=True)
        ]
        found |= {f"prompt_{name}": float(all(good)), f"instruction_{name}": sum(good) / len(good)}
    return found
