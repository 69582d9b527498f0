"""The road's data sets: from the built-in sources, or from a person's own folder."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from small_doge.processor.builtin import BUILTIN_SOURCES
from small_doge.processor.documents import is_test, iter_documents
from small_doge.processor.ft_datasets_process import mix_datasets_by_ratio as mix_conversations
from small_doge.processor.pt_datasets_process import mix_datasets_by_ratio as mix_text
from small_doge.processor.report import Report
from small_doge.processor.token_stream import shuffle_blocks
from small_doge.processor.tokenizer import train_tokenizer
from small_doge.quickstart.settings import Settings
from small_doge.quickstart.state import write_json
from small_doge.quickstart.user_data import SortedFiles, sort_files

logger = logging.getLogger(__name__)

TEST_SHARE = 0.1
ARITHMETIC = "builtin:arithmetic"
IDENTITY_COPIES = 20
PROBLEM = ("question", "answer")


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
    """Documents of each source by its share, `megabytes` of UTF-8 in all at most, from one side of the split.

    The last document of a source is cut to what is left, so that a source of few long ones does not take more.
    """
    texts: list[str] = []
    total = sum(share for source in sources for share in source.values())
    for source in sources:
        for name, share in source.items():
            left = round(megabytes * 1e6 * share / total)
            documents = iter_documents(name, report=Report())
            # Sources come sorted, and a prefix of them is no sample.
            for document in shuffle_blocks(documents, [seed], lambda document: document.characters):
                if is_test(document, TEST_SHARE) != held_out:
                    continue
                data = document.text.encode()[:left]
                texts.append(data.decode(errors="ignore"))
                left -= len(data)
                if left <= 0:
                    break
    return [text for text in texts if text]


def save(data: DatasetDict, folder: Path) -> None:
    """Save the splits that have rows; datasets cannot read back one that has none."""
    DatasetDict({split: rows for split, rows in data.items() if len(rows)}).save_to_disk(str(folder))


def arithmetic(n: int, seed: int, **options: Any) -> list[dict[str, Any]]:
    """Different problems of `builtin:arithmetic`."""
    return list(BUILTIN_SOURCES[ARITHMETIC](n=n, seed=seed, **options))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines, as a person's own file would hold them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_tokenizer(sources: Sources, settings: Settings, folder: Path) -> dict[str, Any]:
    """Train the tokenizer on training text, and a little arithmetic so that it knows the words of the tasks."""
    texts = sample_texts(sources.text, settings.tokenizer_megabytes, held_out=False, seed=settings.seed)
    problems = arithmetic(min(1000, settings.problems), settings.seed, **settings.sums)
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

    identity = list(BUILTIN_SOURCES["builtin:python-qa"](documents=[]))  # who it is, and nothing about documents
    identity_file = write_rows(folder / "identity.jsonl", identity * IDENTITY_COPIES)
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

    # Of comparisons there are enough examples to solve some, so that rewards differ, and too few to solve most.
    examples = settings.problems + settings.comparisons
    spare = 1 + 2 * TEST_SHARE  # the mix keeps a share of them back
    sums = arithmetic(round(settings.problems * spare), settings.seed, **settings.sums)
    pairs = arithmetic(round(settings.comparisons * spare), settings.seed, **settings.pairs)
    worked = write_rows(folder / "worked.jsonl", [*sums, *pairs])
    traces: list[dict[str, float]] = [{str(worked): examples}, *scaled(with_identity, settings.reminders)]
    if sources.reasoning:
        traces += scaled(sources.reasoning, examples / 2)
    distillation = mix_conversations(
        traces,
        total_sample_size=round(sum(share for trace in traces for share in trace.values())),
        kind="conversation",
        apply_thinking_template=True,
        **common,
    )
    save(distillation, folder / "distill")

    asked = arithmetic(settings.reinforcement_problems, settings.seed + 1, **settings.pairs)
    reinforcement = DatasetDict({"train": Dataset.from_list([{key: row[key] for key in PROBLEM} for row in asked])})
    save(reinforcement, folder / "grpo")

    tests = arithmetic(settings.held_out_problems, settings.seed, split="test", **settings.pairs)
    held_out = {
        "texts": held_out_texts,
        "conversations": [row["messages"] for row in conversations["test"]],
        "preferences": [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in preferences["test"]],
        "problems": [{key: row[key] for key in PROBLEM} for row in tests],
    }
    write_json(folder / "held_out.json", held_out)
    sets = {"pretrain": rows, "sft": conversations, "dpo": preferences, "distill": distillation, "grpo": reinforcement}
    return {
        "train_rows": {name: len(data["train"]) for name, data in sets.items()},
        "held_out": {name: len(items) for name, items in held_out.items()},
        "held_out_bytes": sum(len(text.encode()) for text in held_out_texts),
    }
