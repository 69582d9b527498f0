"""Source `builtin:arithmetic`: word problems with small numbers, worked steps and an answer that can be checked."""

import random
from collections.abc import Iterator, Sequence

from .splitting import position

SOURCE = "builtin:arithmetic"
TEST_SHARE = 0.1
KINDS = ("chain", "bare", "multiply", "difference", "total", "larger", "smaller")
USUAL_MIX = ("chain", "chain", "chain", "bare", "bare", "multiply", "difference", "total", "larger", "smaller")
ATTEMPTS = 2_000  # draws in a row without a new problem after which there are no more

_NAMES = (
    "Tom", "Anna", "Ben", "Lucy", "Sam", "Mia", "Max", "Ella", "Leo", "Nina", "Jack", "Rosa", "Omar", "Lily",
    "Adam", "Zoe", "Paul", "Ivy", "Hugo", "Kate", "Li", "Wei", "Raj", "Maya",
)  # fmt: skip
_THINGS = (
    "apples", "pens", "books", "coins", "cards", "eggs", "shells", "stamps", "balls", "cakes", "stones",
    "flowers", "toys", "marbles", "pears", "keys", "cups", "stars", "hats", "nuts",
)  # fmt: skip
_BOXES = ("boxes", "bags", "rows", "baskets", "shelves", "jars", "trays", "packs")
_GAINS = ("{} gets {} more.", "{} finds {} more.", "{} buys {} more.", "{} wins {} more.")
_LOSSES = ("{} loses {}.", "{} gives away {}.", "{} sells {}.", "{} drops {}.")


def iter_problems(
    n: int,
    seed: int = 0,
    split: str = "train",
    steps: Sequence[int] = (1, 2, 3),
    max_value: int = 20,
    kinds: Sequence[str] = USUAL_MIX,
) -> Iterator[dict]:
    """Yield `n` different problems, the same for the same arguments.

    Keys: `question`, `reasoning` (worked steps such as `7 + 5 = 12.`), `answer` (an integer's digits), `messages` (the
    assistant's has `content`, the answer, and `reasoning_content`), `id`, `level` (number of steps), `kind`, `group`
    (the operations and operands, in order) and `source`.

    The split goes by the hash of `group`: no expression of a test problem, in that order, is one of a training problem,
    whatever the wording. `steps` are the lengths of the chained problems; `max_value` bounds each number and result;
    `kinds` are those of `KINDS` to draw from, evenly (name one twice to draw it twice as often).

    Raises:
        ValueError: an unknown split or kind, numbers out of range, or too few different problems for `n`.
    """
    if split not in ("train", "test"):
        raise ValueError(f"Unknown split {split!r}: choose 'train' or 'test'.")
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"Unknown kinds {list(kinds)}: choose from {', '.join(KINDS)}.")
    if not steps or min(steps) < 1 or max_value < 4:
        raise ValueError(f"steps must be at least 1 and max_value at least 4, not {list(steps)} and {max_value}.")
    rng = random.Random(f"{seed}:{split}")
    seen: set[str] = set()
    misses = 0
    while len(seen) < n:
        kind = rng.choice(kinds)
        question, reasoning, answer, group = _PROBLEMS[kind](rng, rng.choice(steps), max_value)
        if (position(group) < TEST_SHARE) != (split == "test") or question in seen:
            misses += 1
            if misses > ATTEMPTS:
                raise ValueError(f"Only {len(seen)} different {split} problems of {n} found: raise max_value or steps.")
            continue
        misses = 0
        seen.add(question)
        yield {
            "question": question,
            "reasoning": reasoning,
            "answer": str(answer),
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": str(answer), "reasoning_content": reasoning},
            ],
            "id": f"arithmetic-{split}-{seed}-{len(seen) - 1}",
            "level": max(1, reasoning.count("=")),
            "kind": kind,
            "group": group,
            "source": SOURCE,
        }


_Problem = tuple[str, str, int, str]  # question, reasoning, answer, expression


def _draw_chain(rng: random.Random, steps: int, max_value: int) -> tuple[int, list[tuple[str, int]]]:
    """A start and signed steps whose intermediate values stay within 0 and `max_value`."""
    start = value = rng.randint(1, max_value)
    moves: list[tuple[str, int]] = []
    for _ in range(steps):
        grows = value == 0 or (value < max_value and rng.random() < 0.5)
        amount = rng.randint(1, max_value - value if grows else value)
        value += amount if grows else -amount
        moves.append(("+" if grows else "-", amount))
    return start, moves


def _worked(start: int, moves: list[tuple[str, int]]) -> tuple[str, int]:
    value, lines = start, []
    for sign, amount in moves:
        result = value + amount if sign == "+" else value - amount
        lines.append(f"{value} {sign} {amount} = {result}.")
        value = result
    return " ".join(lines), value


def _expression(start: int, moves: list[tuple[str, int]]) -> str:
    return " ".join([str(start), *(f"{sign} {amount}" for sign, amount in moves)])


def _chain(rng: random.Random, steps: int, max_value: int) -> _Problem:
    start, moves = _draw_chain(rng, steps, max_value)
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    story = [rng.choice(_GAINS if sign == "+" else _LOSSES).format(name, amount) for sign, amount in moves]
    question = f"{name} has {start} {things}. {' '.join(story)} How many {things} does {name} have now?"
    worked, answer = _worked(start, moves)
    return question, f"{name} starts with {start}. {worked}", answer, _expression(start, moves)


def _bare(rng: random.Random, steps: int, max_value: int) -> _Problem:
    start, moves = _draw_chain(rng, steps, max_value)
    worked, answer = _worked(start, moves)
    expression = _expression(start, moves)
    wording = rng.choice(("What is {}?", "Calculate {}.", "How much is {}?", "Work out {}."))
    return wording.format(expression), worked, answer, expression


def _multiply(rng: random.Random, steps: int, max_value: int) -> _Problem:
    boxes = rng.randint(2, max_value // 2)
    each = rng.randint(2, max_value // boxes)
    box, things = rng.choice(_BOXES), rng.choice(_THINGS)
    wording = rng.choice(("There are {} {} with {} {} each.", "{} {} hold {} {} each."))
    question = f"{wording.format(boxes, box, each, things)} How many {things} are there in all?"
    return question, f"{boxes} {box} of {each}. {boxes} * {each} = {boxes * each}.", boxes * each, f"{boxes} * {each}"


def _difference(rng: random.Random, steps: int, max_value: int) -> _Problem:
    low = rng.randint(1, max_value - 1)
    high = rng.randint(low + 1, max_value)
    (more, fewer), things = rng.sample(_NAMES, 2), rng.choice(_THINGS)
    told = f"{more} has {high} {things}. {fewer} has {low}."
    if rng.random() < 0.5:
        question = f"{told} How many more {things} does {more} have than {fewer}?"
    else:
        question = f"{told} How many fewer {things} does {fewer} have than {more}?"
    return (
        question,
        f"{more} has {high}. {fewer} has {low}. {high} - {low} = {high - low}.",
        high - low,
        f"{high} - {low}",
    )


def _total(rng: random.Random, steps: int, max_value: int) -> _Problem:
    a = rng.randint(1, max_value - 1)
    b = rng.randint(1, max_value - a)
    (first, second), things = rng.sample(_NAMES, 2), rng.choice(_THINGS)
    question = f"{first} has {a} {things}. {second} has {b}. How many {things} do they have together?"
    return question, f"{first} has {a}. {second} has {b}. {a} + {b} = {a + b}.", a + b, f"{a} + {b}"


def _larger(rng: random.Random, steps: int, max_value: int) -> _Problem:
    return _compared(rng, max_value, "larger")


def _smaller(rng: random.Random, steps: int, max_value: int) -> _Problem:
    return _compared(rng, max_value, "smaller")


def _compared(rng: random.Random, max_value: int, word: str) -> _Problem:
    a, b = rng.sample(range(1, max_value + 1), 2)
    answer = max(a, b) if word == "larger" else min(a, b)
    (first, second), things = rng.sample(_NAMES, 2), rng.choice(_THINGS)
    if rng.random() < 0.5:
        question = f"Which number is {word}, {a} or {b}?"
    else:
        question = f"{first} has {a} {things} and {second} has {b}. Which number is {word}?"
    return question, f"{answer} is {word} than {a + b - answer}.", answer, f"{word} {a} {b}"


_PROBLEMS = {
    "chain": _chain, "bare": _bare, "multiply": _multiply, "difference": _difference, "total": _total,
    "larger": _larger, "smaller": _smaller,
}  # fmt: skip
