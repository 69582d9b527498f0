from collections import Counter

import pytest

from small_doge.processor.builtin import iter_preferences
from small_doge.processor.builtin.splitting import position


@pytest.fixture(scope="module")
def pairs(documents):
    return list(iter_preferences(documents))


def test_pairs_have_one_question_and_two_different_answers(pairs):
    assert len(pairs) > 2_000
    for pair in pairs:
        assert [m["role"] for m in pair["prompt"] + pair["chosen"] + pair["rejected"]] == [
            "user",
            "assistant",
            "assistant",
        ]
        assert pair["chosen"] != pair["rejected"]


def test_the_three_kinds_are_equally_frequent_and_worse_in_their_own_way(pairs):
    counts = Counter(p["kind"] for p in pairs)
    assert max(counts.values()) - min(counts.values()) < 0.02 * len(pairs)
    assert set(counts) == {"truncated", "repeated", "mismatched"}
    for pair in pairs:
        good, bad = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        if pair["kind"] == "truncated":
            assert good.startswith(bad)
            assert len(bad) < len(good)
        elif pair["kind"] == "repeated":
            assert bad.count(good) >= 2


def test_a_mismatched_answer_is_right_elsewhere_and_never_crosses_the_split(pairs):
    groups = {p["chosen"][0]["content"]: p["group"] for p in pairs}
    for pair in (p for p in pairs if p["kind"] == "mismatched"):
        other = groups[pair["rejected"][0]["content"]]
        assert other != pair["group"]
        for share in (0.01, 0.02, 0.05, 0.1, 0.2):
            assert (position(other) < share) == (position(pair["group"]) < share)
