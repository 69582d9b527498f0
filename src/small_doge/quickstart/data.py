"""The road's data sets: from the built-in sources, or from a person's own folder."""

from __future__ import annotations

import itertools
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
SPARE = 1 + 2 * TEST_SHARE  # how many more to make, because the mix keeps a share of them back
ARITHMETIC = "builtin:arithmetic"
IDENTITY_COPIES = 20
PROBLEM = ("question", "answer")
TOKENS_A_PROBLEM = 30
ROW_CHARACTERS = 1500  # of a conversation, about as far as the recipes' max_length reaches


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


def first(rows: Dataset, count: int) -> Dataset:
    """The first `count` rows, or all where there are fewer."""
    return rows.select(range(min(count, len(rows))))


def within(rows: Dataset, kilobytes: int) -> Dataset:
    """The first conversations that hold so much text together, so that long ones take no more time than short ones."""
    sizes = (min(ROW_CHARACTERS, sum(len(m["content"]) for m in messages)) for messages in rows["messages"])
    return first(rows, sum(total <= 1000 * kilobytes for total in itertools.accumulate(sizes)))


def arithmetic(n: int, seed: int, **options: Any) -> list[dict[str, Any]]:
    """Different problems of `builtin:arithmetic`."""
    return list(BUILTIN_SOURCES[ARITHMETIC](n=n, seed=seed, **options))


def worked_text(problem: dict[str, Any]) -> str:
    """A problem as text to read: what is asked, the steps, the answer."""
    return "\n".join(problem[key] for key in ("question", "reasoning", "answer"))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines, as a person's own file would hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_tokenizer(sources: Sources, settings: Settings, folder: Path) -> dict[str, Any]:
    """Train the tokenizer on training text, and on so many sums that each number in them becomes one token.

    A model as small as this learns to copy a number of one token in a minute, and one of two tokens not at all.
    """
    texts = sample_texts(sources.text, settings.tokenizer_megabytes, held_out=False, seed=settings.seed)
    problems = arithmetic(settings.tokenizer_problems, settings.seed, **settings.practice)
    tokenizer = train_tokenizer([*texts, *map(worked_text, problems)], settings.vocab_size)
    tokenizer.save_pretrained(str(folder))
    tokens = sum(len(ids) for ids in tokenizer(texts[:500], add_special_tokens=False)["input_ids"])
    size = sum(len(text.encode()) for text in texts)
    sample = sum(len(text.encode()) for text in texts[:500])
    return {"vocabulary": len(tokenizer), "trained_on_bytes": size, "bytes_per_token": round(sample / tokens, 3)}


def make_data(sources: Sources, settings: Settings, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Prepare every stage's data set under `folder`, and what its figures are measured on under `held_out.json`."""
    common: dict[str, Any] = {"seed": settings.seed, "test_share": TEST_SHARE, "cache_dir": folder / "cache"}
    identity = list(BUILTIN_SOURCES["builtin:python-qa"](documents=[]))  # who it is, and nothing about documents
    identity_file = write_rows(folder / "identity.jsonl", identity * IDENTITY_COPIES)
    conversations = [*scaled(sources.conversations, 0.95), {str(identity_file): 0.05}]
    traces = worked_problems(sources.reasoning, conversations, settings, folder)
    sets = {
        "pretrain": mix_text(
            with_practice(sources.text, settings, folder),
            total_sample_size=settings.pretrain_rows,
            processing_class=str(tokenizer),
            max_length=settings.row_length,
            test_sample_size=64,
            **common,
        ),
        "sft": mix_conversations(
            conversations,
            total_sample_size=settings.conversations,
            kind="conversation",
            test_sample_size=settings.held_out_conversations,
            **common,
        ),
        "dpo": mix_conversations(
            sources.preferences,
            # So many that enough of them fall on the held-out side.
            total_sample_size=max(settings.preferences, round(settings.held_out_preferences / TEST_SHARE)),
            kind="preference",
            test_sample_size=settings.held_out_preferences,
            **common,
        ),
        "distill": mix_conversations(
            traces,
            total_sample_size=round(sum(share for trace in traces for share in trace.values())),
            kind="conversation",
            apply_thinking_template=True,
            **common,
        ),
        "grpo": asked_problems(settings),
    }
    sets["sft"]["train"] = within(sets["sft"]["train"], settings.conversation_kilobytes)
    sets["dpo"]["train"] = first(sets["dpo"]["train"], settings.preferences)
    for name, data in sets.items():
        save(data, folder / name)
    tests = arithmetic(settings.held_out_problems, settings.seed, split="test", **settings.pairs)
    held_out = {
        "texts": sample_texts(sources.text, settings.held_out_kilobytes / 1000, held_out=True, seed=settings.seed),
        "conversations": [row["messages"] for row in sets["sft"]["test"]],
        "preferences": [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in sets["dpo"]["test"]],
        "problems": [{key: row[key] for key in PROBLEM} for row in tests],
    }
    write_json(folder / "held_out.json", held_out)
    return {
        "train_rows": {name: len(data["train"]) for name, data in sets.items()},
        "held_out": {name: len(items) for name, items in held_out.items()},
        "held_out_bytes": sum(len(text.encode()) for text in held_out["texts"]),
    }


def with_practice(text: list[dict[str, float]], settings: Settings, folder: Path) -> list[dict[str, float]]:
    """The mix of text with its share of worked sums."""
    tokens = settings.practice_share * settings.pretrain_rows * settings.row_length
    problems = arithmetic(round(SPARE * tokens / TOKENS_A_PROBLEM), settings.seed, **settings.practice)
    practice = write_rows(folder / "practice.jsonl", [{"text": worked_text(problem)} for problem in problems])
    return [*scaled(text, 1 - settings.practice_share), {str(practice): settings.practice_share}]


def worked_problems(
    reasoning: list[dict[str, float]], conversations: list[dict[str, float]], settings: Settings, folder: Path
) -> list[dict[str, float]]:
    """The mix to learn thinking from, its shares as numbers of rows.

    Of comparisons there are enough examples to solve many, so that rewards differ, and too few to solve nearly all.
    """
    sums = arithmetic(round(settings.problems * SPARE), settings.seed, **settings.sums)
    pairs = arithmetic(round(settings.comparisons * SPARE), settings.seed, **settings.pairs)
    worked = write_rows(folder / "worked.jsonl", [*sums, *pairs])
    examples = settings.problems + settings.comparisons
    own = scaled(reasoning, examples / 8) if reasoning else []  # long ones: these take as much time as the others
    return [{str(worked): examples}, *scaled(conversations, settings.reminders), *own]


def asked_problems(settings: Settings) -> DatasetDict:
    """Comparisons to reinforce: a question and the answer to check against."""
    problems = arithmetic(settings.reinforcement_problems, settings.seed + 1, **settings.pairs)
    return DatasetDict({"train": Dataset.from_list([{key: row[key] for key in PROBLEM} for row in problems])})
