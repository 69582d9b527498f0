"""Whether the worked steps of a completion's thoughts are true."""

from __future__ import annotations

import re

from small_doge.rewards.thinking import split_thinking

EQUATION = re.compile(r"(?<![\d.])(\d+) ([-+*]) (\d+) = (-?\d+)(?![\d.]*\d)")
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def true_steps(text: str, answer: str | None = None) -> float:
    """Share of the equations in the thoughts (`7 + 5 = 12`) that hold; 0 without well-formed thoughts or an equation.

    Denser than the answer alone: a chain of three steps with one mistake earns two thirds. It does not ask whether the
    steps belong to the problem, so it is a help beside `accuracy`, never a replacement.
    """
    parts = split_thinking(text)
    found = EQUATION.findall(parts[0]) if parts else []
    right = sum(OPERATIONS[sign](int(a), int(b)) == int(c) for a, sign, b, c in found)
    return right / len(found) if found else 0.0
