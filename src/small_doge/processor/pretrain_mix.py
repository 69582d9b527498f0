"""The pretraining pipeline: documents -> tokens -> an exact mix -> packed rows on disk, streaming and resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from small_doge.processor.documents import iter_documents
from small_doge.processor.encoded_documents import EncodedDocument
from small_doge.processor.mixing import MixState, Sample, describe, mix
from small_doge.processor.ordered_map import map_in_order, read_ahead
from small_doge.processor.packing import PackingStats, one_piece_a_row, pack
from small_doge.processor.quality import QualityOptions, apply_blocks
from small_doge.processor.report import Report
from small_doge.processor.row_store import ArrowFile, shard_path, write_shard
from small_doge.processor.token_stream import Chunk, DocumentEncoder, chunk_documents, shuffle_blocks

if TYPE_CHECKING:
    import pyarrow as pa

Tokens = NDArray[np.int32]
STATE_FILE = "state.json"
CARRY_FILE = "carry-{:05d}.npy"
READ_AHEAD = 40
"""Chunks of a source that are read before they are needed: enough to encode while the next block is being read."""
ENCODE_AHEAD = 8
"""Chunks a worker that are encoded before they are needed: enough to go on while a window is being packed."""


@dataclass
class PretrainMix:
    """A pretraining mix to make.

    Attributes:
        names, ratios: the sources and their shares of the training tokens, adding up to 1.
        encoder: what makes tokens of a text.
        max_length: tokens a row.
        total_rows: training rows to make; None takes as many as the ratios allow.
        ratio_by: "tokens", or "rows" for shares of documents.
        packing: rows hold several documents; without it each row holds (a part of) one.
        test_share: share of the documents, chosen by hash, that goes to the test part.
        test_rows: the most rows the test part may have.
        repeat: a source that runs out starts again.
        quality: blocks that leave documents out, each source with its own.
        read: gives a source's documents as tokens (`EncodedDocument`), where another machine has encoded them; the
            arguments above that say how to read are then its own.
        window_rows, shard_rows: rows packed together, and rows a file.
    """

    names: list[str]
    ratios: list[float]
    encoder: DocumentEncoder
    max_length: int
    total_rows: int | None = None
    ratio_by: str = "tokens"
    packing: bool = True
    text_field: str = "text"
    formatting_func: Callable[[dict[str, Any]], Any] | None = None
    test_share: float = 0.01
    test_rows: int = 1000
    repeat: bool = False
    shuffle: bool = True
    seed: int = 233
    workers: int = 1
    window_rows: int = 2048
    shard_rows: int = 8192
    quality: QualityOptions = QualityOptions()
    source_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    read: Callable[[str, Report], Iterator[EncodedDocument]] | None = None
    progress: Callable[[int], None] | None = None

    def run(self, folder: Path) -> Report:
        """Write `train/` and `test/` shards into `folder`, going on from where an earlier run was stopped."""
        run = _Run(self, folder)
        with ThreadPoolExecutor(self.workers) as pool:
            run.make(pool if self.workers > 1 else None)
        return run.report


class _Run:
    def __init__(self, plan: PretrainMix, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.report = Report()
        self.seen = [0] * len(plan.names)
        self.test_tokens = [0] * len(plan.names)
        self.test_taken = [0] * len(plan.names)
        self.test: list[Tokens] = []
        self.state = MixState([0] * len(plan.names), [0] * len(plan.names))
        self.tokens = [0] * len(plan.names)
        self.stats = PackingStats(plan.max_length)
        self.window: list[Tokens] = []
        self.window_tokens = 0
        self.windows = 0
        self.shard: ArrowFile | None = None
        self.shards = 0
        self.cut_tokens = 0
        self.rows = 0
        self.full = False

    def make(self, pool: ThreadPoolExecutor | None) -> None:
        plan = self.plan
        self._load()
        skipped = list(self.state.taken)
        streams = [self._samples(index, skipped[index], pool) for index in range(len(plan.names))]
        by_tokens = plan.ratio_by == "tokens"
        total = (
            plan.total_rows * plan.max_length if plan.total_rows is not None and plan.packing and by_tokens else None
        )
        for index, sample in mix(streams, plan.ratios, total, self.state, self._cut if by_tokens else None):
            tokens = self._fit(sample.payload)
            self.tokens[index] += len(tokens)
            self._add(tokens)
            if self.full:
                break
        if self.window:
            self._pack(self.window)
        if self.shard:
            self.shard.close()
        self._write_test()
        self._finish()

    def _fit(self, tokens: Tokens) -> Tokens:
        """What of a document still fits under `total_rows`; sets `full` when that is reached."""
        plan = self.plan
        if plan.total_rows is None:
            return tokens
        if plan.packing:
            room = plan.total_rows * plan.max_length - sum(self.tokens)
        else:
            room = (plan.total_rows - self.rows) * plan.max_length
        self.full = len(tokens) >= room
        return self._cut(tokens, room) if len(tokens) > room else tokens

    def _samples(self, index: int, skip: int, pool: ThreadPoolExecutor | None) -> Iterator[Sample[Tokens]]:
        """The training documents of a source as tokens; those that an earlier run has used are read but not encoded."""
        plan, name = self.plan, self.plan.names[index]
        for epoch in range(2**31):
            before = self.seen[index]
            jobs = self._jobs(index, epoch, skip)
            if pool is not None:
                jobs = read_ahead(jobs, READ_AHEAD)
            for chunk_report, train, test in map_in_order(self._encode, jobs, pool, ahead=ENCODE_AHEAD * plan.workers):
                self.report.merge(chunk_report)
                self._keep_test(index, test, epoch)
                first = max(0, min(skip - self.seen[index], len(train)))
                self.seen[index] += len(train)
                for array in train[first:]:
                    yield Sample(len(array) if plan.ratio_by == "tokens" else 1, array)
            if self.seen[index] == before:
                raise ValueError(
                    f"The source {name!r} has no usable document ({self.report.reasons(name)}): "
                    "mend it or take it out of the mix."
                )
            if not plan.repeat:
                return
            self.report.note(f"{name} was used up and starts again (pass {epoch + 2}).")

    def _jobs(self, index: int, epoch: int, skip: int) -> Iterator[tuple[Chunk, int]]:
        """Chunks of a source, each with the number of its training documents to leave unencoded."""
        plan, name = self.plan, self.plan.names[index]
        report = Report()
        documents = self._documents(name, report) if plan.read is None else plan.read(name, report)
        if plan.shuffle:
            # By the place in the mix, not the name: a folder that was moved gives the same order.
            seed = [plan.seed, index, epoch]
            documents = shuffle_blocks(documents, seed, lambda document: document.characters)
        seen = self.seen[index]
        for chunk in chunk_documents(documents, report, plan.test_share):
            yield chunk, max(0, min(skip - seen, len(chunk.train)))
            seen += len(chunk.train)

    def _documents(self, name: str, report: Report) -> Iterator[Any]:
        plan = self.plan
        documents = iter_documents(
            name,
            plan.text_field,
            report=report,
            formatting_func=plan.formatting_func,
            **plan.source_options.get(name, {}),
        )
        return apply_blocks(documents, plan.quality.blocks(), report, name)

    def _encode(self, job: tuple[Chunk, int]) -> tuple[Report, list[Tokens], list[Tokens]]:
        chunk, skip = job
        empty = np.zeros(0, dtype=np.int32)
        return chunk.report, [empty] * skip + self._tokens(chunk.train[skip:]), self._tokens(chunk.test)

    def _tokens(self, documents: list[Any]) -> list[Tokens]:
        if self.plan.read is not None:
            return [document.tokens for document in documents]
        return self.plan.encoder([document.text for document in documents])

    def _keep_test(self, index: int, arrays: list[Tokens], epoch: int) -> None:
        name = self.plan.names[index]
        room = self.plan.test_rows * self.plan.max_length * self.plan.ratios[index]
        for array in arrays:
            if epoch > 0:
                self.report.unkeep(name, 1, "test document met again")
            elif self.test_tokens[index] + len(array) > room:
                self.report.unkeep(name, 1, "test part full")
            else:
                self.test_tokens[index] += len(array)
                self.test_taken[index] += 1
                self.test.append(array)

    def _cut(self, tokens: Tokens, size: int) -> Tokens:
        self.cut_tokens += len(tokens) - size
        return tokens[:size]

    def _add(self, tokens: Tokens) -> None:
        size = self.plan.window_rows * self.plan.max_length
        self.rows += -(-len(tokens) // self.plan.max_length)
        while self.window_tokens + len(tokens) >= size:
            # Without packing a document's rows start afresh, so it is not cut at the window's end.
            head = size - self.window_tokens if self.plan.packing else len(tokens)
            self._pack([*self.window, tokens[:head]])
            self.window, self.window_tokens, tokens = [], 0, tokens[head:]
            if self.windows * self.plan.window_rows % self.plan.shard_rows == 0:
                assert self.shard is not None
                self.shard.close()
                self.shard = None
                self.shards += 1
                self._save(tokens)
        if len(tokens):
            self.window.append(tokens)
            self.window_tokens += len(tokens)

    def _pack(self, arrays: list[Tokens]) -> None:
        arrays = [array for array in arrays if len(array)]
        table, stats = self._rows(arrays, np.random.default_rng([self.plan.seed, self.windows]))
        self.stats.add(stats)
        if self.shard is None:
            self.shard = ArrowFile(shard_path(self.folder / "train", self.shards), table.schema)
        self.shard.write(table)
        self.windows += 1
        if self.plan.progress:
            self.plan.progress(sum(self.tokens))

    def _rows(self, arrays: list[Tokens], rng: np.random.Generator) -> tuple[pa.Table, PackingStats]:
        columns = {"input_ids": np.concatenate(arrays)}
        lengths = [len(array) for array in arrays]
        if self.plan.packing:
            packed, stats = pack(columns, lengths, self.plan.max_length, rng, fill=True)
        else:
            packed, stats = one_piece_a_row(columns, lengths, self.plan.max_length)
        return packed.to_arrow(), stats

    def _save(self, carry: Tokens) -> None:
        """Write down where the run stands; `carry` is the rest of a document that goes on in the next shard."""
        np.save(self.folder / CARRY_FILE.format(self.shards), carry)
        state = {
            "mix": asdict(self.state),
            "tokens": self.tokens,
            "stats": asdict(self.stats),
            "rows": self.rows,
            "windows": self.windows,
            "shards": self.shards,
            "cut_tokens": self.cut_tokens,
        }
        partial = self.folder / (STATE_FILE + ".partial")
        partial.write_text(json.dumps(state))
        os.replace(partial, self.folder / STATE_FILE)
        (self.folder / CARRY_FILE.format(self.shards - 1)).unlink(missing_ok=True)

    def _load(self) -> None:
        path = self.folder / STATE_FILE
        if not path.exists():
            return
        state = json.loads(path.read_text())
        self.state = MixState(**state["mix"])
        self.tokens, self.windows, self.shards = state["tokens"], state["windows"], state["shards"]
        self.cut_tokens = state["cut_tokens"]
        self.stats = PackingStats(**state["stats"])
        self._add(np.load(self.folder / CARRY_FILE.format(self.shards)))
        self.rows = state["rows"]

    def _write_test(self) -> None:
        if self.test:
            table, stats = self._rows(self.test, np.random.default_rng([self.plan.seed]))
            write_shard(self.folder / "test", 0, [table], table.schema)
            self.report.figures["test"] = stats.as_dict()

    def _finish(self) -> None:
        plan, report = self.plan, self.report
        for index, name in enumerate(plan.names):
            unneeded = report.kept[name] - self.state.taken[index] - self.test_taken[index]
            report.unkeep(name, unneeded, "not needed for the size asked for")
        for index in self.state.ran_out if plan.total_rows is not None or len(plan.names) > 1 else ():
            report.note(
                f"{plan.names[index]} ran out after {self.tokens[index]:,} training tokens and ends the mix there: "
                "give it more data, a smaller ratio, or repeat=True for more."
            )
        report.check()
        report.figures["mix"] = describe(self.state, plan.names, plan.ratios, plan.ratio_by)
        report.figures["train"] = self.stats.as_dict()
        report.figures["tokens_cut_at_the_end"] = self.cut_tokens
        assert self.stats.tokens_in == self.stats.tokens_out == sum(self.tokens)
