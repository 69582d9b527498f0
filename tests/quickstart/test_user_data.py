"""A person's folder is sorted by what is in it, evaluation data is left alone, and bad input is told its mend."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from small_doge.quickstart.data import by_size, choose_sources, scaled
from small_doge.quickstart.user_data import kind_of, sort_files

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
THOUGHT = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "<think>2</think>2"}]}


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "words"}, "text"),
        (CHAT, "conversations"),
        ({"prompt": "a", "response": "b"}, "conversations"),
        ({"instruction": "a", "output": "b"}, "conversations"),
        (THOUGHT, "reasoning"),
        ({"question": "a", "answer": "b"}, "reasoning"),
        ({"problem": "a", "solution": "b"}, "reasoning"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences"),
        ({"id": 3}, None),
        ({"text": 7}, None),
    ],
)
def test_columns_show_the_kind(row: dict, kind: str | None) -> None:
    assert kind_of(row) == kind


def test_a_folder_is_sorted_and_evaluation_data_is_left_out(tmp_path: Path) -> None:
    text = tmp_path / "notes.md"
    text.write_text("# Notes\n\nSome text.")
    chats = write(tmp_path / "sft" / "chat.jsonl", CHAT)
    pairs = write(tmp_path / "pairs.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    thoughts = write(tmp_path / "thoughts.jsonl", THOUGHT)
    for name in ("test.jsonl", "deeper/other.jsonl"):
        write(tmp_path / "eval" / name, {"question": "a", "answer": "b"})
    write(tmp_path / "other.jsonl", {"id": 1})
    found = sort_files(tmp_path)
    assert (found.text, found.conversations, found.preferences, found.reasoning) == (
        [text],
        [chats],
        [pairs],
        [thoughts],
    )
    assert [line.split(":")[0] for line in found.left_out] == [str(tmp_path / "eval"), str(tmp_path / "other.jsonl")]
    sources = choose_sources(tmp_path)
    assert sources.text == [{str(text): 1.0}]


def test_a_kind_that_the_folder_lacks_comes_from_the_built_in_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "chat.jsonl", CHAT)
    sources = choose_sources(tmp_path)
    assert sources.text == [{"builtin:python-docs": 1.0}]
    assert "holds no text: the built-in ones are used" in caplog.text


def test_shares_follow_size_and_add_up(tmp_path: Path) -> None:
    small, large = tmp_path / "a.txt", tmp_path / "b.txt"
    small.write_text("x" * 100)
    large.write_text("x" * 300)
    assert by_size([small, large]) == [{str(small): 0.25}, {str(large): 0.75}]
    assert scaled([{"a": 1.0}, {"b": 3.0}], 2.0) == [{"a": 0.5}, {"b": 1.5}]


def truncated(path: Path, compress: Callable[[bytes], bytes]) -> None:
    rows = b"".join(json.dumps({"text": f"{i * 7919} words"}).encode() for i in range(5000)) + b"\n"
    data = compress(rows)
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "holds no data"),
        (lambda folder: (folder / "a.jsonl").write_bytes(b""), "is empty"),
        (lambda folder: (folder / "a.txt").write_bytes(bytes(range(256))), "a.txt"),
        (lambda folder: truncated(folder / "a.jsonl.gz", gzip.compress), "a.jsonl.gz.*fetch it again"),
        (lambda folder: truncated(folder / "a.jsonl.zst", zstandard.compress), "a.jsonl.zst.*fetch it again"),
        (lambda folder: write(folder / "a.jsonl", {"id": 1}), "nothing to train on"),
    ],
    ids=[
        "an empty folder",
        "a 0-byte shard",
        "a binary file",
        "a truncated gzip file",
        "a truncated zstd file",
        "no known columns",
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        choose_sources(tmp_path)
    assert "\n" not in str(error.value)
