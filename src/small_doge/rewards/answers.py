"""Whether a completion's final answer is right."""

from __future__ import annotations

import re
from collections.abc import Callable

from small_doge.rewards.thinking import split_thinking

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def final_number(text: str) -> float | None:
    """The last number in a text, thousands separators allowed; None if there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def answer_of(text: str) -> str | None:
    """What follows the thoughts, or the whole text where there are none; None where they are never closed."""
    parts = split_thinking(text)
    if parts is None:
        return None if "<think" in text else text
    return parts[1]


def accuracy(text: str, answer: str) -> float | None:
    """1 where the number that the completion ends with equals the answer's, else 0; None where the answer holds no
    number.

    Thoughts do not count: only what follows them. A completion that never closes its thoughts has given no answer.
    """
    gold = final_number(answer)
    if gold is None:
        return None
    given = answer_of(text)
    return 1.0 if given is not None and final_number(given) == gold else 0.0


def mathematics(text: str, answer: str) -> float | None:
    """1 where the expression that the completion ends with equals the answer, as math-verify judges it, else 0; None
    where it can read nothing in the answer.

    Thoughts do not count, as in `accuracy`. The answer is an expression, or a solution that boxes it.

    Raises:
        ValueError: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError:
        raise ValueError("mathematics needs math-verify: pip install 'small-doge[reason]'.") from None

    gold = parse(answer if "\\boxed" in answer else f"\\boxed{{{answer}}}")
    if not gold:
        return None
    given = answer_of(text)
    return float(given is not None and verify(gold, parse(given)))


JUDGES: dict[str, Callable[[str, str], float | None]] = {"accuracy": accuracy, "math": mathematics}


def judge_of(name: str) -> Callable[[str, str], float | None]:
    """What tells right answers from wrong ones: "accuracy" or "math".

    Raises:
        ValueError: another name.
    """
    if name not in JUDGES:
        raise ValueError(f"correct is {name!r}: choose one of {', '.join(JUDGES)}.")
    return JUDGES[name]
