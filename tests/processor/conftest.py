"""What the processor's tests share: a small tokenizer, made-up files, and the folder of real data."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from small_doge.processor.tokenizer import train_tokenizer

WORDS = """
the a of and to in is that for it as was with be by on not he his but at are this have from or had an they which one
list of values mean median float return number string row column file folder token model train test word sentence
"""


def made_text(rng: random.Random, words: int) -> str:
    """A text of so many words in sentences, paragraphs and a little code and Chinese."""
    parts, vocabulary = [], WORDS.split()
    for number in range(words):
        parts.append(rng.choice(vocabulary))
        if number % 11 == 10:
            parts[-1] += rng.choice([".", ".\n\n", ",", " 狗很小。", "\n    x = f(1234)\n"])
    return " ".join(parts)


@pytest.fixture(scope="session")
def tokenizer():
    rng = random.Random(0)
    return train_tokenizer((made_text(rng, 200) for _ in range(50)), vocab_size=400)


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes rows to a .jsonl file in the test's folder and returns its path as a string."""

    def write(name: str, rows: list[dict]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def text_file(write_jsonl):
    """Writes a source of `count` made-up documents and returns its path."""

    def write(name: str, count: int, seed: int = 0, words: tuple[int, int] = (5, 400)) -> str:
        rng = random.Random(f"{name}{seed}")
        rows = [
            {"text": f"{name} {i}: " + made_text(rng, rng.randint(*words)), "id": f"{name}-{i}"} for i in range(count)
        ]
        return write_jsonl(name, rows)

    return write


@pytest.fixture(scope="session")
def data_folder() -> Path:
    folder = os.environ.get("SMALL_DOGE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: set SMALL_DOGE_DATA to its folder")
    return Path(folder)
