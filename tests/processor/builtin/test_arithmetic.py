import operator
import re

import pytest

from small_doge.processor.builtin import iter_problems
from small_doge.processor.builtin.arithmetic import KINDS

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def check_steps(problem):
    """Every worked step is right, goes on from the one before, uses the question's numbers, and ends in the answer."""
    reasoning, numbers = problem["reasoning"], [int(n) for n in re.findall(r"\d+", problem["question"])]
    result = None
    used = []
    for a, sign, b, c in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", reasoning):
        assert SIGNS[sign](int(a), int(b)) == int(c)
        assert result is None or int(a) == result
        used += [int(a), int(b)] if result is None else [int(b)]
        result = int(c)
    for a, word, b in re.findall(r"(\d+) is (larger|smaller) than (\d+)", reasoning):
        assert int(a) > int(b) if word == "larger" else int(a) < int(b)
        used, result = [int(a), int(b)], int(a)
    assert sorted(used) == sorted(numbers)
    assert str(result) == problem["answer"]


def test_every_worked_step_is_right_and_ends_in_the_answer():
    problems = list(iter_problems(3_000, seed=3))
    assert {p["kind"] for p in problems} == set(KINDS)
    assert {p["level"] for p in problems} == {1, 2, 3}
    for problem in problems:
        check_steps(problem)


def test_the_checker_refuses_a_wrong_step():
    with pytest.raises(AssertionError):
        check_steps({"question": "What is 7 + 5?", "reasoning": "7 + 5 = 13.", "answer": "13"})


def test_no_expression_of_a_test_problem_is_trained_on():
    train = list(iter_problems(10_000, seed=0, split="train"))
    test = list(iter_problems(600, seed=1, split="test"))
    assert not {p["group"] for p in train} & {p["group"] for p in test}
    assert not {p["question"] for p in train} & {p["question"] for p in test}
    assert len({p["group"] for p in test}) > 100


def test_problems_differ_and_a_seed_fixes_them():
    problems = list(iter_problems(1_000, seed=5))
    assert len({p["question"] for p in problems}) == len({p["id"] for p in problems}) == 1_000
    assert problems == list(iter_problems(1_000, seed=5))
    assert problems != list(iter_problems(1_000, seed=6))


@pytest.mark.parametrize("max_value", [4, 10, 50])
def test_numbers_stay_within_max_value(max_value):
    for problem in iter_problems(200, max_value=max_value, steps=(1, 4)):
        assert max(map(int, re.findall(r"\d+", problem["question"] + problem["reasoning"]))) <= max_value


def test_messages_carry_the_steps_beside_the_answer():
    problem = next(iter_problems(1))
    assert problem["messages"] == [
        {"role": "user", "content": problem["question"]},
        {"role": "assistant", "content": problem["answer"], "reasoning_content": problem["reasoning"]},
    ]


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"split": "validation"}, "choose 'train' or 'test'"),
        ({"kinds": ["divide"]}, "choose from chain"),
        ({"steps": ()}, "at least 1"),
        ({"max_value": 3}, "at least 4"),
        ({"n": 10_000, "kinds": ["bare"], "steps": [1], "max_value": 4}, "raise max_value or steps"),
    ],
)
def test_impossible_requests_name_the_mend(options, mend):
    with pytest.raises(ValueError, match=mend):
        list(iter_problems(**{"n": 1, **options}))
