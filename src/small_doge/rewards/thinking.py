"""Splits a completion into its thoughts and its answer, for the three tag families in use."""

from __future__ import annotations

import re

FAMILIES = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
SOLUTION = re.compile(r"<\|begin_of_solution\|>(.*?)<\|end_of_solution\|>", re.DOTALL)


def split_thinking(text: str) -> tuple[str, str] | None:
    """The thoughts and the answer of a well-formed completion; None for any other.

    Well formed: exactly one opening and one closing tag of one family, in this order, nothing but white space before
    them (a prompt may already have opened the tag), thoughts between them and an answer after.
    """
    for opening, closing in FAMILIES:
        if closing not in text:
            continue
        thoughts, _, answer = text.partition(closing)
        before, found, inside = thoughts.partition(opening)
        if found and before.strip():
            return None
        thoughts = inside if found else thoughts
        if opening in thoughts or opening in answer or closing in answer:
            return None
        solution = SOLUTION.search(answer)
        answer = solution[1] if solution else answer
        thoughts, answer = thoughts.strip(), answer.strip()
        return (thoughts, answer) if thoughts and answer else None
    return None


def well_formed(text: str, answer: str | None = None) -> float:
    """1 for a completion with thoughts in one pair of tags and an answer after them, else 0."""
    return 0.0 if split_thinking(text) is None else 1.0
