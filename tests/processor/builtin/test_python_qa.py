import re

import pytest

from small_doge.processor.builtin import iter_conversations
from small_doge.processor.builtin.python_qa import short_answer
from small_doge.processor.builtin.splitting import position


@pytest.fixture(scope="module")
def conversations(documents):
    return list(iter_conversations(documents))


def test_thousands_of_distinct_conversations_of_one_question_and_one_answer(conversations):
    assert len(conversations) > 2_000
    assert len({c["id"] for c in conversations}) == len(conversations)
    for c in conversations:
        assert [m["role"] for m in c["messages"]] == ["user", "assistant"]
        assert 20 <= len(c["messages"][1]["content"]) <= 400
    answers = [c["messages"][1]["content"] for c in conversations if c["kind"] == "what"]
    assert len({a.lower() for a in answers}) == len(answers)


def test_an_answer_is_the_documentation_s_own_first_sentence(conversations):
    answers = {c["id"]: c["messages"][1]["content"] for c in conversations}
    assert answers["statistics.median#what"] == "Return the median (middle value) of numeric data."
    assert answers["math.sqrt#what"] == "Return the square root of x."


def test_no_markup_or_examples_are_left_in_answers(conversations):
    noise = re.compile(r"``|:\w+:`|>>>|\.\. |https?:|\n")
    assert [a for c in conversations if noise.search(a := c["messages"][1]["content"])] == []


def test_every_answer_is_split_with_the_document_it_comes_from(documents, conversations):
    groups = {d["group"] for d in documents}
    assert {c["group"] for c in conversations if c["kind"] != "identity"} <= groups
    median = next(c for c in conversations if c["topic"] == "statistics.median")
    assert median["group"] == next(d["group"] for d in documents if d["id"] == "statistics.median")


def test_it_says_that_it_is_doge_and_this_is_never_held_out(conversations):
    identity = [c for c in conversations if c["kind"] == "identity"]
    assert len(identity) >= 10
    assert all("Doge" in c["messages"][1]["content"] for c in identity)
    assert position("identity") > 0.2


def test_the_seed_fixes_order_and_wording(documents, conversations):
    assert list(iter_conversations(documents)) == conversations
    assert list(iter_conversations(documents, seed=1)) != conversations


@pytest.mark.parametrize(
    ("doc", "answer"),
    [
        ("Return the larger, e.g. for sorting. It is fast.", "Return the larger, e.g. for sorting. It is fast."),
        ("open the file\nand read it for the caller\n\nMore.", "Open the file and read it for the caller."),
        ("See :class:`X` for the details of this.", ""),
        ("Unbalanced (parenthesis of the text.", ""),
        ("Short of it.", ""),
        ("Parameters:\nx : the value of it", ""),
    ],
)
def test_short_answer(doc, answer):
    assert short_answer(doc) == answer
