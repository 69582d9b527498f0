"""Whether a completion's final answer is right."""

from __future__ import annotations

import re

from small_doge.rewards.thinking import split_thinking

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def final_number(text: str) -> float | None:
    """The last number in a text, thousands separators allowed; None if there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def accuracy(text: str, answer: str) -> float | None:
    """1 where the number that the completion ends with equals the answer's, else 0; None where the answer holds no
    number.

    Thoughts do not count: only what follows them. A completion that never closes its thoughts has given no answer.
    """
    gold = final_number(answer)
    if gold is None:
        return None
    parts = split_thinking(text)
    if parts is None and "<think" in text:
        return 0.0
    given = final_number(parts[1] if parts else text)
    return 1.0 if given == gold else 0.0
