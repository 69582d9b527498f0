"""A needle in a haystack in plain words, for any checkpoint with a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

PLACES = ("Paris", "Cairo", "Lima", "Oslo", "Delhi", "Quito", "Rome", "Kyoto", "Perth", "Tunis")
SUBJECTS = ("The old man", "A young girl", "The teacher", "My neighbor", "The doctor", "Our cousin", "The farmer")
VERBS = ("walked past", "looked at", "painted", "talked about", "remembered", "cleaned", "sold", "asked about")
OBJECTS = ("the garden", "a small house", "the river", "the market", "his bicycle", "an empty road", "the church")


def filler(words: int, rng: random.Random) -> list[str]:
    """Sentences that say nothing, of so many words in all or a few more."""
    sentences: list[str] = []
    count = 0
    while count < words:
        sentence = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}."
        sentences.append(sentence)
        count += len(sentence.split())
    return sentences


def needle_row(words: int, depth: float, rng: random.Random) -> dict[str, Any]:
    """A text with one secret number in it, a question that ends just before the number, and the number."""
    sentences = filler(words, rng)
    place, number = rng.choice(PLACES), str(rng.randrange(10_000, 100_000))
    sentences.insert(round(depth * len(sentences)), f"The secret number of {place} is {number}.")
    question = f"Question: What is the secret number of {place}?\nAnswer: The secret number of {place} is"
    return {
        "context": f"{' '.join(sentences)}\n\n{question}",
        "answer": number,
        "words": words,
        "depth": depth,
    }


def needle_splits(
    words: Sequence[int], depths: Sequence[float], each: int, seed: int = 0, shots: int = 0, **_: Any
) -> dict[str, Any]:
    """lm-eval's splits: `each` texts of every length (in words) at every depth, drawn from the seed."""
    from datasets import Dataset

    rng = random.Random(seed)
    rows = [needle_row(length, depth, rng) for length in words for depth in depths for _ in range(each)]
    rng.shuffle(rows)
    examples = [needle_row(min(words), rng.random(), rng) for _ in range(max(1, shots))]
    return {"test": Dataset.from_list(rows), "shots": Dataset.from_list(examples)}
