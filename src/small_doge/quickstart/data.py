"""The road's data sets: from the built-in sources, or from a person's own folder."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from small_doge.processor.builtin import BUILTIN_SOURCES
from small_doge.processor.documents import is_test, iter_documents
from small_doge.processor.ft_datasets_process import mix_datasets_by_ratio as mix_conversations
from small_doge.processor.pt_datasets_process import mix_datasets_by_ratio as mix_text
from small_doge.processor.report import Report
from small_doge.processor.tokenizer import train_tokenizer
from small_doge.quickstart.settings import Settings
from small_doge.quickstart.state import write_json
from small_doge.quickstart.user_data import SortedFiles, sort_files

logger = logging.getLogger(__name__)

TEST_SHARE = 0.1
ARITHMETIC = "builtin:arithmetic"
IDENTITY_COPIES = 20


@dataclass(frozen=True)
class Sources:
    """Where each kind of data comes from: a list of `{source: share}`."""

    text: list[dict[str, float]]
    conversations: list[dict[str, float]]
    preferences: list[dict[str, float]]
    reasoning: list[dict[str, float]]


def choose_sources(data: Path | None) -> Sources:
    """The built-in sources, or the files of `data` with the built-in ones where it has none of a kind.

    Raises:
        ValueError: the folder cannot be used.
    """
    files = SortedFiles() if data is None else sort_files(data)
    for line in files.left_out:
        logger.warning("left out: %s", line)
    for kind, found in (
        ("text", files.text),
        ("conversations", files.conversations),
        ("preferences", files.preferences),
    ):
        if data is not None and not found:
            logger.warning("%s holds no %s: the built-in ones are used.", data, kind)
    return Sources(
        text=by_size(files.text) or [{"builtin:python-docs": 1.0}],
        conversations=by_size(files.conversations) or [{"builtin:python-qa": 1.0}],
        preferences=by_size(files.preferences) or [{"builtin:python-preferences": 1.0}],
        reasoning=by_size(files.reasoning),
    )


def by_size(files: list[Path]) -> list[dict[str, float]]:
    """Each file with its share of the bytes, so that a mix draws from all of them evenly."""
    total = sum(path.stat().st_size for path in files)
    return [{str(path): path.stat().st_size / total} for path in files]


def scaled(mix: list[dict[str, float]], share: float) -> list[dict[str, float]]:
    """The same mix with its shares adding up to `share`."""
    total = sum(value for source in mix for value in source.values())
    return [{name: value / total * share for name, value in source.items()} for source in mix]


def sample_texts(sources: list[dict[str, float]], megabytes: float, held_out: bool, seed: int) -> list[str]:
    """Documents of each source by its share, about `megabytes` of UTF-8 in all, from one side of the split."""
    texts: list[str] = []
    total = sum(share for source in sources for share in source.values())
    for source in sources:
        for name, share in source.items():
            left = megabytes * 1e6 * share / total
            for document in shuffled(iter_documents(name, report=Report()), seed):
                if is_test(document, TEST_SHARE) != held_out:
                    continue
                texts.append(document.text)
                left -= len(document.text.encode())
                if left <= 0:
                    break
    return texts


def shuffled(items: Iterator[Any], seed: int, buffer: int = 20_000) -> Iterator[Any]:
    """The items in blocks of shuffled order: sources come sorted, and a prefix of them is not a sample."""
    rng = random.Random(seed)
    block: list[Any] = []
    for item in items:
        block.append(item)
        if len(block) == buffer:
            rng.shuffle(block)
            yield from block
            block = []
    rng.shuffle(block)
    yield from block


def save(data: DatasetDict, folder: Path) -> None:
    """Save the splits that have rows; datasets cannot read back one that has none."""
    DatasetDict({split: rows for split, rows in data.items() if len(rows)}).save_to_disk(str(folder))


def make_tokenizer(sources: Sources, settings: Settings, folder: Path) -> dict[str, Any]:
    """Train the tokenizer on training text, and a little arithmetic so that it knows the words of the tasks."""
    texts = sample_texts(sources.text, settings.tokenizer_megabytes, held_out=False, seed=settings.seed)
    problems = BUILTIN_SOURCES[ARITHMETIC](n=min(1000, settings.problems), seed=settings.seed, **settings.arithmetic)
    texts += [f"{problem['question']}\n{problem['reasoning']}" for problem in problems]
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    tokenizer.save_pretrained(str(folder))
    tokens = sum(len(ids) for ids in tokenizer(texts[:500], add_special_tokens=False)["input_ids"])
    size = sum(len(text.encode()) for text in texts)
    sample = sum(len(text.encode()) for text in texts[:500])
    return {"vocabulary": len(tokenizer), "trained_on_bytes": size, "bytes_per_token": round(sample / tokens, 3)}


def make_data(sources: Sources, settings: Settings, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Prepare every stage's data set under `folder`, and what its figures are measured on under `held_out.json`."""
    common: dict[str, Any] = {"seed": settings.seed, "test_share": TEST_SHARE, "cache_dir": folder / "cache"}

    rows = mix_text(
        sources.text,
        total_sample_size=settings.pretrain_rows,
        processing_class=str(tokenizer),
        max_length=settings.row_length,
        test_sample_size=64,
        **common,
    )
    save(rows, folder / "pretrain")
    held_out_texts = sample_texts(sources.text, settings.held_out_kilobytes / 1000, held_out=True, seed=settings.seed)

    identity = [row for row in BUILTIN_SOURCES["builtin:python-qa"]() if row["kind"] == "identity"]
    identity_file = folder / "identity.jsonl"
    identity_file.write_text("".join(json.dumps(row) + "\n" for row in identity * IDENTITY_COPIES), encoding="utf-8")
    with_identity = [*scaled(sources.conversations, 0.95), {str(identity_file): 0.05}]
    conversations = mix_conversations(
        with_identity,
        total_sample_size=settings.conversations,
        kind="conversation",
        test_sample_size=settings.held_out_conversations,
        **common,
    )
    save(conversations, folder / "sft")

    preferences = mix_conversations(
        sources.preferences,
        total_sample_size=settings.preferences,
        kind="preference",
        test_sample_size=settings.held_out_preferences,
        **common,
    )
    save(preferences, folder / "dpo")

    problems = settings.problems
    traces: list[dict[str, float]] = [{ARITHMETIC: problems}, *scaled(with_identity, settings.reminders)]
    if sources.reasoning:
        traces += scaled(sources.reasoning, problems / 2)
    distillation = mix_conversations(
        traces,
        total_sample_size=round(sum(share for trace in traces for share in trace.values())),
        kind="conversation",
        apply_thinking_template=True,
        source_options={ARITHMETIC: {"n": problems + 600, "seed": settings.seed, **settings.arithmetic}},
        **common,
    )
    save(distillation, folder / "distill")

    wanted = settings.reinforcement_problems
    reinforcement = mix_conversations(
        [{ARITHMETIC: 1.0}],
        total_sample_size=wanted,
        kind="conversation",
        keep_columns=("question", "answer"),
        source_options={ARITHMETIC: {"n": wanted + 500, "seed": settings.seed + 1, **settings.arithmetic}},
        **common,
    )
    save(reinforcement, folder / "grpo")

    tests = BUILTIN_SOURCES[ARITHMETIC](
        n=settings.held_out_problems, seed=settings.seed, split="test", **settings.arithmetic
    )
    held_out = {
        "texts": held_out_texts,
        "conversations": [row["messages"] for row in conversations["test"]],
        "preferences": [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in preferences["test"]],
        "problems": [{"question": row["question"], "answer": row["answer"]} for row in tests],
    }
    write_json(folder / "held_out.json", held_out)
    sets = {"pretrain": rows, "sft": conversations, "dpo": preferences, "distill": distillation, "grpo": reinforcement}
    return {
        "train_rows": {name: len(data["train"]) for name, data in sets.items()},
        "held_out": {name: len(items) for name, items in held_out.items()},
        "held_out_bytes": sum(len(text.encode()) for text in held_out_texts),
    }
