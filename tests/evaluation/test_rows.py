"""Rows of a task are the same from a folder and from the hub, shuffled by the seed, with the shots kept apart."""

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="datasets is not installed: pip install 'small-doge[eval]'")

import zstandard

from small_doge.evaluation.hub_rows import HUB_ROWS
from small_doge.evaluation.rows import find_rows, read_rows, task_splits

HUB = {"path": "nowhere", "split": "test", "row": "arc"}
ROWS = [{"query": f"Question: {i}", "choices": ["a", "b"], "gold": i % 2, "kind": "xy"[i % 2]} for i in range(20)]


def write(path: Path, rows=ROWS) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".zst":
        path.write_bytes(zstandard.compress(text.encode()))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst", ".jsonl.gz"])
def test_a_file_is_found_and_read_in_any_compression(tmp_path, ending):
    write(tmp_path / f"a{ending}")
    assert read_rows(find_rows(tmp_path, "a")) == ROWS


def test_a_missing_file_is_named_with_the_mend(tmp_path):
    with pytest.raises(ValueError, match=r"no a\.jsonl.*--data-dir"):
        find_rows(tmp_path, "a")


def test_shots_come_from_the_shuffled_rows_and_are_not_scored(tmp_path):
    write(tmp_path / "a.jsonl")
    splits = task_splits("a", HUB, str(tmp_path), shots=5, seed=1)
    test, shots = (splits[name].to_list() for name in ("test", "shots"))
    assert len(test) == 15 and len(shots) == 5
    assert sorted(row["query"] for row in test + shots) == sorted(row["query"] for row in ROWS)
    assert test == task_splits("a", HUB, str(tmp_path), shots=5, seed=1)["test"].to_list()
    assert test != task_splits("a", HUB, str(tmp_path), shots=5, seed=2)["test"].to_list()


def test_rows_carry_the_shots_of_their_own_group(tmp_path):
    write(tmp_path / "a.jsonl")
    write(tmp_path / "dev.jsonl", [{"kind": kind, "query": f"{kind}{i}"} for kind in "xy" for i in range(3)])
    options = {"shots_file": "dev", "group": "kind", "intro": "About {{kind}}.\n", "example": "{{query}}!\n"}
    splits = task_splits("a", HUB, str(tmp_path), shots=2, **options)
    assert len(splits["test"]) == 20
    for row in splits["test"]:
        kind = row["kind"]
        assert row["worked"] == f"About {kind}.\n{kind}0!\n{kind}1!\n"


def test_too_many_shots_are_refused_with_the_mend(tmp_path):
    write(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="lower --shots"):
        task_splits("a", HUB, str(tmp_path), shots=20)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "arc",
            {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            {"query": "Question: Why?", "choices": ["x", "y"], "gold": 1},
        ),
        (
            "openbookqa",
            {"question_stem": "Fog is", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B "},
            {"query": "Fog is", "choices": ["x", "y"], "gold": 1},
        ),
        (
            "hellaswag",
            {
                "activity_label": "Roof",
                "ctx_a": "A man sits.",
                "ctx_b": "he",
                "endings": [" falls [step] down", "works"],
                "label": "1",
            },
            {"query": "Roof: A man sits. He", "endings": ["falls down", "works"], "label": 1},
        ),
        (
            "winogrande",
            {"sentence": "Ann paid Eve so _ was glad.", "option1": "Ann", "option2": "Eve", "answer": "2"},
            {
                "context_options": ["Ann paid Eve so Ann", "Ann paid Eve so Eve"],
                "continuation": "was glad.",
                "gold": 1,
            },
        ),
        ("lambada", {"text": "I saw the signs"}, {"context": "I saw the", "continuation": "signs"}),
        (
            "boolq",
            {"passage": "Rain is wet.", "question": "is rain wet", "label": 1},
            {"query": "Passage: Rain is wet.\nQuestion: is rain wet?", "choices": ["no", "yes"], "gold": 1},
        ),
        (
            "ifeval",
            {"key": 1, "prompt": "p", "instruction_id_list": ["a"], "kwargs": [{"n": 1, "m": None}]},
            {"key": 1, "prompt": "p", "instruction_id_list": ["a"], "kwargs": [{"n": 1}]},
        ),
    ],
)
def test_a_row_of_the_hub_becomes_a_row_of_the_folder(name, row, expected):
    assert HUB_ROWS[name](row) == expected
