"""Rewards pay for what they say, and never for what they cannot judge."""

from __future__ import annotations

import pytest

from small_doge.rewards import REWARDS, Group, accuracy, get_reward, mathematics, text_of, true_steps, well_formed
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


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("so it is $\\frac{1}{2}$", "0.5", 1.0),
        ("\\boxed{x + 1}", "1 + x", 1.0),
        ("<think>$3$</think> $4$", "3", 0.0),
        ("<think>so it is $3$", "3", 0.0),
        ("$2$", "First. Then \\boxed{2}.", 1.0),
        ("$2$", "", None),
    ],
    ids=["a fraction", "another order", "right only in thought", "never answered", "a boxed solution", "no answer"],
)
def test_mathematics_compares_expressions(text: str, answer: str, reward: float | None) -> None:
    assert mathematics(text, answer) == reward


def group(*lengths: int, texts: tuple[str, ...] = ("4", "4", "5", "5")) -> Group:
    return Group("4", texts[: len(lengths)], [range(tokens) for tokens in lengths])


def test_short_right_answers_earn_most_and_wrong_ones_nothing() -> None:
    assert get_reward("length")(group(10, 30, 10, 20)) == [0.5, -0.5, 0.0, 0.0]
    assert get_reward("length")(group(10, 20, 30, 25)) == [0.5, 0.0, -0.5, -0.25]
    assert get_reward("length")(group(10, 10)) == [0.0, 0.0], "of one length there is nothing to tell apart"


def test_the_cosine_stays_at_its_end_beyond_the_longest() -> None:
    right = get_reward("cosine", max_tokens=100)
    assert right(group(0, 100)) == pytest.approx([1.0, 0.5])
    assert right(group(50, 250)) == pytest.approx([0.75, 0.5])
    wrong = right(group(0, 50, 0, 300, texts=("4", "4", "5", "5")))[2:]
    assert wrong == pytest.approx([-1.0, -0.5]), "a short wrong answer loses most"


def test_an_answer_that_cannot_be_judged_is_left_out_of_the_length_rewards() -> None:
    unknown = Group("four", ["4"], [range(3)])
    assert get_reward("length")(unknown) == get_reward("cosine")(unknown) == [None]


@pytest.mark.parametrize(
    ("ids", "reward"),
    [([1, 2, 3, 4], 0.0), ([1, 2], 0.0), ([7] * 12, -0.9), ([1, 2, 3, 1, 2, 3, 1, 2], -0.5)],
    ids=["all different", "too short", "one token again and again", "a phrase again"],
)
def test_repetition_is_counted_in_tokens(ids: list[int], reward: float) -> None:
    assert get_reward("repetition")(Group("4", ["4"], [ids])) == pytest.approx([reward])


def test_reasoning_gym_scores_its_own_tasks() -> None:
    gym = pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: install small-doge[reason]")
    entry = gym.create_dataset("countdown", seed=0, size=1)[0]
    texts = [f"<think>so</think>{entry['answer']}", "<think>so", "I do not know"]
    rewards = get_reward("gym")(Group(entry["answer"], texts, metadata=entry["metadata"]))
    assert rewards[0] == 1.0
    assert max(rewards[1:]) < 0.1
    assert get_reward("gym")(Group("4", ["4"])) == [None]


def test_reasoning_gym_can_be_asked_to_pay_for_whole_answers_only() -> None:
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: install small-doge[reason]")
    group = Group("2", ["126", "2"], metadata={"source_dataset": "gcd"})
    assert get_reward("gym")(group) == [pytest.approx(1 / 3), 1.0]
    assert get_reward("gym", whole=True)(group) == [0.0, 1.0]


def test_rewards_are_found_by_name() -> None:
    assert get_reward("accuracy")(Group("4", ["4", "5"])) == [1.0, 0.0]
    with pytest.raises(ValueError, match=f"choose from {', '.join(sorted(REWARDS))}"):
        get_reward("beauty")
    with pytest.raises(ValueError, match="'cosine' has no option 'max_len': choose from max_tokens"):
        get_reward("cosine", max_len=10)
    with pytest.raises(ValueError, match="correct is 'luck': choose one of accuracy, math"):
        get_reward("length", correct="luck")(group(1, 2))
