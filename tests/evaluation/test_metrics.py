"""What counts as a right answer in the tasks that are generated."""

from __future__ import annotations

import pytest

from small_doge.evaluation.metrics import same_number

SOLUTION = {"answer": "7 + 5 = 12\n#### 12"}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("The answer is 12.", 1.0),
        ("<think>\n7 + 5 = 12.\n</think>\n\n12", 1.0),
        ("<think>\n7 + 5 = 12.\n</think>\n\n13", 0.0),
        ("<think>\n7 + 5 = 12. Now", 0.0),
    ],
    ids=["without thoughts", "after the thoughts", "only in the thoughts", "in thoughts that never end"],
)
def test_the_number_after_the_thoughts_counts(text: str, score: float) -> None:
    assert same_number(SOLUTION, [text]) == {"exact_match": score}
