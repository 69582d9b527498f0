"""Thoughts written into a text, in any of the tag families of this field, taken apart from the answer."""

from __future__ import annotations

import re

# Opening and closing tag of a thought, and of the answer where a family marks that too.
FAMILIES = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
ANSWER_TAGS = ("<|begin_of_solution|>", "<|end_of_solution|>")
_OPENING = re.compile("|".join(re.escape(opening) for opening, _ in FAMILIES))
_CLOSING = dict(FAMILIES)


def split_thought(text: str) -> tuple[str | None, str]:
    """A text's thought and the answer after it: ("why", "answer") for `<think>why</think>answer` in any family.

    Several thoughts one after another are joined by an empty line. The thought is None where the text does not begin
    with one; a thought may also lack its opening tag, as in answers to a prompt that ended with it.

    Raises:
        ValueError: a thought is opened and never closed.
    """
    thoughts: list[str] = []
    rest = text.lstrip()
    while match := _OPENING.match(rest):
        thought, closing, after = rest[match.end() :].partition(_CLOSING[match.group()])
        if not closing:
            raise ValueError(f"a thought opened by {match.group()} is never closed")
        thoughts.append(thought.strip("\n"))
        rest = after.lstrip()
    if not thoughts:
        for opening, closing in FAMILIES:
            if closing in text and opening not in text:
                thought, _, rest = text.partition(closing)
                return thought.strip("\n"), _strip_answer_tags(rest)
        return None, text
    return "\n\n".join(thoughts), _strip_answer_tags(rest)


def mentions_thought_tags(text: str) -> bool:
    """Whether a text (such as a system prompt) speaks of tags that `split_thought` takes away."""
    return any(tag in text for family in FAMILIES for tag in family)


def _strip_answer_tags(text: str) -> str:
    opening, closing = ANSWER_TAGS
    answer = text.strip()
    if answer.startswith(opening):
        answer = answer[len(opening) :].removesuffix(closing).strip()
    return answer
