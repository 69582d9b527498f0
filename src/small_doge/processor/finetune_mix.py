"""The fine-tuning pipeline: rows of any shape -> conversations or preference pairs -> an exact mix -> rows on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from small_doge.processor.chat_encoding import ChatEncoder
from small_doge.processor.conversations import RowError, is_preference, prompt_key, to_conversation, to_preference
from small_doge.processor.documents import key_is_test
from small_doge.processor.mixing import MixState, Sample, describe, mix
from small_doge.processor.ordered_map import map_in_order
from small_doge.processor.packing import PackingStats, one_piece_a_row, pack
from small_doge.processor.quality import Block, QualityOptions
from small_doge.processor.readers import Row
from small_doge.processor.report import Report
from small_doge.processor.row_store import write_json_lines, write_shard
from small_doge.processor.sources import open_source
from small_doge.processor.token_stream import shuffle_blocks

Example = dict[str, Any]
# Examples of a source that are encoded together: its name, the report of their reading, and the place of each.
Chunk = tuple[str, Report, list[tuple[Example, str]]]
PARTS = ("train", "test")
KINDS = ("conversation", "preference")
CHUNK_EXAMPLES = 128


@dataclass
class FinetuneMix:
    """A fine-tuning mix to make.

    Attributes:
        names, ratios: the sources and their shares, adding up to 1.
        kind: "conversation", "preference", or None to take preferences where every source has them.
        encoder: renders and encodes conversations; None leaves them as messages.
        max_length: tokens a row; a longer conversation is left out and counted, never cut.
        total_rows: training rows to make; None takes as many as the ratios allow.
        ratio_by: "tokens" (needs the encoder) or "rows"; pairs are always counted by rows.
        packing: rows hold several conversations.
        thinking: thoughts in tags or columns become `reasoning_content`.
        keep_columns: columns of the source that rows keep, such as the checkable answer of a task.
        test_share, test_rows: as for pretraining; the hash is of a row's `group`, or of what is asked.
        quality: blocks that leave rows out, judged by the text of all messages, each source with its own.
        workers: threads that render and encode.
    """

    names: list[str]
    ratios: list[float]
    kind: str | None
    encoder: ChatEncoder | None
    max_length: int
    total_rows: int | None = None
    ratio_by: str = "rows"
    packing: bool = False
    thinking: bool = False
    text_field: str = "text"
    formatting_func: Callable[[dict[str, Any]], Any] | None = None
    keep_columns: tuple[str, ...] = ()
    test_share: float = 0.01
    test_rows: int = 1000
    repeat: bool = False
    shuffle: bool = True
    seed: int = 233
    workers: int = 1
    window_rows: int = 2048
    quality: QualityOptions = QualityOptions()
    source_options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, folder: Path) -> Report:
        """Write `train/` and `test/` shards into `folder`."""
        run = _Run(self, folder)
        with ThreadPoolExecutor(self.workers) as pool:
            return run.make(pool if self.workers > 1 else None)


class _Run:
    def __init__(self, plan: FinetuneMix, folder: Path) -> None:
        self.plan = plan
        self.report = Report()
        self.kind = plan.kind or self._common_kind()
        # Pairs stay text, so they are counted by rows.
        self.by_tokens = plan.ratio_by == "tokens" and self.kind == "conversation"
        self.state = MixState([0] * len(plan.names), [0] * len(plan.names))
        self.seen = [0] * len(plan.names)
        self.test_seen = [0] * len(plan.names)
        encoded = plan.encoder is not None and self.kind == "conversation"
        self.writers = {
            part: _EncodedWriter(folder / part, plan) if encoded else _ExampleWriter(folder / part) for part in PARTS
        }

    def make(self, pool: ThreadPoolExecutor | None) -> Report:
        plan = self.plan
        streams = [self._samples(index, pool) for index in range(len(plan.names))]
        by_tokens = self.by_tokens
        packed = plan.packing and by_tokens
        total = None if plan.total_rows is None else plan.total_rows * (plan.max_length if packed else 1)
        for _, sample in mix(streams, plan.ratios, None if by_tokens and not packed else total, self.state):
            self.writers["train"].add(sample.payload)
            if total is not None and not packed and sum(self.state.taken) >= total:
                break
        for index, name in enumerate(plan.names):
            unneeded = self.report.kept[name] - self.state.taken[index] - self.test_seen[index]
            self.report.unkeep(name, unneeded, "not needed for the size asked for")
        for index in self.state.ran_out if plan.total_rows is not None or len(plan.names) > 1 else ():
            self.report.note(
                f"{plan.names[index]} ran out after {self.state.taken[index]:,} training rows and ends the mix there: "
                "give it more data, a smaller ratio, or repeat=True for more."
            )
        self.report.check()
        self.report.figures["kind"] = self.kind
        self.report.figures["mix"] = describe(self.state, plan.names, plan.ratios, "tokens" if by_tokens else "rows")
        for part, writer in self.writers.items():
            self.report.figures[part] = writer.close()
        return self.report

    def _common_kind(self) -> str:
        """Preferences if every source starts with one; a mix of both kinds is read as conversations, and says so."""
        first = {name: next(self._rows(name, Report()), None) for name in self.plan.names}
        found = {name: row is not None and is_preference(self._fields(row)) for name, row in first.items()}
        if all(found.values()):
            return "preference"
        for name in (name for name, preference in found.items() if preference):
            self.report.note(f"{name} holds preferences: its chosen answers are used as conversations in this mix.")
        return "conversation"

    def _rows(self, name: str, report: Report) -> Iterator[Row]:
        return open_source(name, report, **self.plan.source_options.get(name, {}))

    def _fields(self, row: Row) -> dict[str, Any]:
        fields = dict(row.fields)
        if self.plan.formatting_func is None:
            return fields
        made = self.plan.formatting_func(dict(fields))
        if not isinstance(made, dict):
            raise ValueError(f"formatting_func gave {type(made).__name__} for {row.origin}: let it return a dict.")
        return {**{name: fields[name] for name in ("id", "group", *self.plan.keep_columns) if name in fields}, **made}

    def _samples(self, index: int, pool: ThreadPoolExecutor | None) -> Iterator[Sample[Example]]:
        plan, name = self.plan, self.plan.names[index]
        for epoch in range(2**31):
            before = self.seen[index]
            chunks = self._chunks(index, epoch)
            for _, report, examples in map_in_order(self._encode, chunks, pool, ahead=2 * plan.workers):
                self.report.merge(report)
                for example, _ in examples:
                    if key_is_test(example.pop("__key__"), plan.test_share):
                        self._keep_test(index, example, epoch)
                        continue
                    self.seen[index] += 1
                    weight = len(example["input_ids"]) if self.by_tokens else 1
                    yield Sample(weight, example)
            if self.seen[index] == before:
                raise ValueError(
                    f"The source {name!r} has no usable training row ({self.report.reasons(name)}): "
                    "mend it or take it out of the mix."
                )
            if not plan.repeat:
                return
            self.report.note(f"{name} was used up and starts again (pass {epoch + 2}).")

    def _keep_test(self, index: int, example: Example, epoch: int) -> None:
        if epoch > 0:
            self.report.unkeep(self.plan.names[index], 1, "test row met again")
        elif self.test_seen[index] + 1 > self.plan.test_rows * self.plan.ratios[index]:
            self.report.unkeep(self.plan.names[index], 1, "test part full")
        else:
            self.test_seen[index] += 1
            self.writers["test"].add(example)

    def _chunks(self, index: int, epoch: int) -> Iterator[Chunk]:
        """The examples of a source, not yet encoded, in chunks that are the same for any number of workers."""
        plan, name, report = self.plan, self.plan.names[index], Report()
        rows = self._rows(name, report)
        if plan.shuffle:
            # By the place in the mix, not the name: a folder that was moved gives the same order.
            rows = shuffle_blocks(rows, [plan.seed, index, epoch], _characters)
        blocks = plan.quality.blocks()
        waiting: list[tuple[Example, str]] = []
        for row in rows:
            report.read[name] += 1
            example = self._example(row, name, report, blocks)
            if example is not None:
                report.kept[name] += 1
                waiting.append((example, row.origin))
            if len(waiting) == CHUNK_EXAMPLES:
                yield name, report.take(), waiting
                waiting = []
        yield name, report.take(), waiting

    def _example(self, row: Row, name: str, report: Report, blocks: Sequence[Block]) -> Example | None:
        plan, fields = self.plan, self._fields(row)
        kept = {column: _as_cell(fields[column]) for column in plan.keep_columns if column in fields}
        try:
            if self.kind == "preference":
                if not is_preference(fields):
                    raise RowError("no chosen and rejected answers")
                example = to_preference(fields, plan.thinking)
                key = prompt_key(example["prompt"])
                messages = [*example["prompt"], *example["chosen"], *example["rejected"]]
            else:
                example = to_conversation(fields, plan.thinking, plan.text_field)
                key = prompt_key(example["messages"])
                messages = example["messages"]
        except RowError as error:
            report.drop(name, str(error), row.origin)
            return None
        text = "\n".join(message["content"] for message in messages) if blocks else ""
        reason = next((reason for block in blocks if (reason := block(text)) is not None), None)
        if reason is not None:
            report.drop(name, reason, row.origin)
            return None
        return {**kept, **example, "__key__": str(fields.get("group") or key)}

    def _encode(self, chunk: Chunk) -> Chunk:
        """The chunk with its conversations as tokens, where tokens are asked for."""
        name, report, examples = chunk
        if self.plan.encoder is None or self.kind == "preference":
            return chunk
        kept = []
        for example, origin in examples:
            encoded = self.plan.encoder(example.pop("messages"), example.pop("tools", None))
            reason = None
            if len(encoded["input_ids"]) > self.plan.max_length:
                reason = f"longer than max_length {self.plan.max_length}"
            elif not encoded["assistant_masks"].any():
                reason = "no assistant tokens"
            if reason is None:
                kept.append(({**example, **encoded}, origin))
            else:
                report.kept[name] -= 1
                report.drop(name, reason, origin)
        return name, report, kept


def _characters(row: Row) -> int:
    return sum(len(str(value)) for value in row.fields.values())


class _EncodedWriter:
    """Writes encoded conversations, packed or one a row."""

    def __init__(self, folder: Path, plan: FinetuneMix) -> None:
        self.folder = folder
        self.plan = plan
        self.stats = PackingStats(plan.max_length)
        self.waiting: list[Example] = []
        self.tokens = 0
        self.shards = 0

    def add(self, example: Example) -> None:
        self.waiting.append(example)
        self.tokens += len(example["input_ids"])
        if self.tokens >= self.plan.window_rows * self.plan.max_length:
            self._flush()

    def close(self) -> dict[str, Any]:
        if self.waiting:
            self._flush()
        return self.stats.as_dict()

    def _flush(self) -> None:
        columns = {
            name: np.concatenate([example[name] for example in self.waiting])
            for name in ("input_ids", "assistant_masks")
        }
        lengths = [len(example["input_ids"]) for example in self.waiting]
        if self.plan.packing:
            rng = np.random.default_rng([self.plan.seed, self.shards])
            rows, stats = pack(columns, lengths, self.plan.max_length, rng)
            table = rows.to_arrow()
        else:
            rows, stats = one_piece_a_row(columns, lengths, self.plan.max_length)
            table = rows.to_arrow().drop_columns("seq_lengths")
            for name in self.plan.keep_columns:
                table = table.append_column(name, [[example.get(name) for example in self.waiting]])
        write_shard(self.folder, self.shards, [table], table.schema)
        self.stats.add(stats)
        self.shards += 1
        self.waiting, self.tokens = [], 0


def _as_cell(value: Any) -> Any:
    """A dictionary as JSON: its fields may be of other kinds in other rows, which no column of a table can hold."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class _ExampleWriter:
    """Writes messages or preference pairs: as JSON lines first, since which fields exist is known only at the end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "rows.jsonl"
        self.file = self.path.open("w", encoding="utf-8")
        self.rows = 0

    def add(self, example: Example) -> None:
        self.file.write(json.dumps(example, ensure_ascii=False) + "\n")
        self.rows += 1

    def close(self) -> dict[str, Any]:
        self.file.close()
        if self.rows:
            write_json_lines(self.path, self.folder)
        self.path.unlink()
        return {"rows": self.rows}
