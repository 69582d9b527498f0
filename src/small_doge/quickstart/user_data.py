"""Sorts a folder of anybody's files into the kinds of data that the stages take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from small_doge.processor.readers import list_files, read_file_rows
from small_doge.processor.report import Report

# Text to test on must never be trained on, so folders of these names are left alone.
EVALUATION_FOLDERS = ("eval", "evaluation", "test", "tests")
REASONING_ANSWERS = ("answer", "solution", "response", "output")


@dataclass
class SortedFiles:
    """Files by what their first rows are good for, and one line for each file or evaluation folder that is left out."""

    text: list[Path] = field(default_factory=list)
    conversations: list[Path] = field(default_factory=list)
    preferences: list[Path] = field(default_factory=list)
    reasoning: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def sort_files(folder: Path) -> SortedFiles:
    """Look into each file of `folder` and sort it by its columns.

    Raises:
        ValueError: the folder does not exist, holds no usable file, or a file in it cannot be read; with the mend.
    """
    sorted_files = SortedFiles()
    for path in list_files(folder):
        inside = path.parents[: len(path.relative_to(folder).parts) - 1] if folder.is_dir() else ()
        held_back = next((parent for parent in inside if parent.name in EVALUATION_FOLDERS), None)
        if held_back is not None:
            line = f"{held_back}: a folder of evaluation data, which is never trained on."
            if line not in sorted_files.left_out:
                sorted_files.left_out.append(line)
            continue
        first = next(islice(read_file_rows(path, Report(), str(path)), 1), None)
        kind = kind_of(first.fields) if first is not None else None
        if kind is None:
            sorted_files.left_out.append(f"{path}: no text, conversation, preference or reasoning columns.")
        else:
            getattr(sorted_files, kind).append(path)
    if not (sorted_files.text or sorted_files.conversations or sorted_files.preferences or sorted_files.reasoning):
        raise ValueError(f"{folder} holds nothing to train on: put .txt, .md, .jsonl or .parquet files there.")
    return sorted_files


def kind_of(row: Mapping[str, Any]) -> str | None:
    """The kind of data that a row's columns show; None if no stage can take it."""
    if "chosen" in row and "rejected" in row:
        return "preferences"
    if "messages" in row or "conversations" in row or "conversation" in row:
        messages = row.get("messages") or row.get("conversations") or row.get("conversation") or []
        thinks = any("reasoning_content" in m or "<think" in str(m.get("content")) for m in messages)
        return "reasoning" if thinks else "conversations"
    question = "question" in row or "problem" in row
    if question and any(name in row for name in REASONING_ANSWERS):
        return "reasoning"
    if ("prompt" in row or "instruction" in row) and any(name in row for name in REASONING_ANSWERS):
        return "conversations"
    return "text" if isinstance(row.get("text"), str) else None
