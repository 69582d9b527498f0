"""Rewards pay for what they say, and never for what they cannot judge."""

from __future__ import annotations

import pytest

from small_doge.rewards import REWARDS, accuracy, get_reward, text_of, true_steps, well_formed
from small_doge.rewards.thinking import split_thinking

GOOD = "<think>\n7 + 5 = 12.\n</think>\n\n12"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "<thinking>\n7 + 5 = 12.\n</thinking>\n\n12",
        "<|begin_of_thought|>7 + 5 = 12.<|end_of_thought|><|begin_of_solution|>12<|end_of_solution|>",
        "7 + 5 = 12.\n</think>\n\n12",
    ],
    ids=["think", "thinking", "thought tokens", "the prompt opened the tag"],
)
def test_each_family_of_tags_is_split(text: str) -> None:
    assert split_thinking(text) == ("7 + 5 = 12.", "12")
    assert well_formed(text) == 1.0
    assert accuracy(text, "12") == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "12",
        "<think>7 + 5 = 12.",
        "<think></think>12",
        "<think>7 + 5 = 12.</think>",
        "so <think>7 + 5</think> 12",
        "<think>a</think>12</think>",
        "<think>a<think>b</think>12",
    ],
    ids=["none", "never closed", "empty", "no answer", "text before", "closed twice", "opened twice"],
)
def test_what_is_not_well_formed_earns_nothing(text: str) -> None:
    assert well_formed(text) == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("The answer is 1,200.", "1200", 1.0),
        ("-3", "-3", 1.0),
        ("3", "-3", 0.0),
        ("12.0", "12", 1.0),
        ("<think>12</think> 13", "12", 0.0),
        ("<think>so it is 12", "12", 0.0),
        ("I do not know.", "12", 0.0),
    ],
    ids=["thousands", "negative", "sign", "decimal", "right only in thought", "never answered", "no number"],
)
def test_accuracy_reads_the_final_answer_alone(text: str, answer: str, reward: float) -> None:
    assert accuracy(text, answer) == reward


@pytest.mark.parametrize(
    ("thoughts", "reward"),
    [
        ("Tom starts with 7. 7 + 5 = 12. 12 - 3 = 9.", 1.0),
        ("7 + 5 = 12. 12 - 3 = 8.", 0.5),
        ("7 + 5 = 125.", 0.0),
        ("7 * 5 = 35. 3 - 5 = -2.", 1.0),
        ("7 and 5 make 12.", 0.0),
        ("1.5 + 5 = 6", 0.0),
    ],
    ids=["all true", "one of two", "a longer number", "products and signs", "no equation", "decimals are not read"],
)
def test_steps_are_paid_by_the_share_that_is_true(thoughts: str, reward: float) -> None:
    assert true_steps(f"<think>\n{thoughts}\n</think>\n\n9") == reward
    assert true_steps(thoughts) == 0.0, "without tags there are no thoughts"


def test_a_gold_answer_without_a_number_is_not_judged() -> None:
    assert accuracy("12", "twelve") is None


def test_texts_come_as_trl_passes_them() -> None:
    assert text_of("a") == text_of([{"role": "assistant", "content": "a"}]) == "a"


def test_rewards_are_found_by_name() -> None:
    assert all(get_reward(name) is reward for name, reward in REWARDS.items())
    with pytest.raises(ValueError, match="choose from accuracy, format, steps"):
        get_reward("beauty")
