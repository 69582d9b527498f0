"""What lm-eval calls on each generated answer, where its own metrics do not fit."""

from __future__ import annotations

import json
from typing import Any

from small_doge.evaluation.ifeval import follows, variants
from small_doge.rewards.answers import accuracy, mathematics


def same_number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last number of the answer is the one that the solution ends with (GSM8K: `#### n`); thoughts do not
    count, as in the rewards.
    """
    return {"exact_match": accuracy(results[0], doc["answer"]) or 0.0}


def same_mathematics(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer's last expression equals the reference, as math-verify judges it; thoughts do not count."""
    return {"exact_match": mathematics(results[0], doc["answer"]) or 0.0}


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
