"""Documents that were encoded before they are mixed: one Arrow file for each input file, dropped rows among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from small_doge.processor.documents import Document, documents_of
from small_doge.processor.quality.duplicates import ExactDuplicates
from small_doge.processor.readers import Row
from small_doge.processor.report import Report
from small_doge.processor.row_store import ArrowFile

if TYPE_CHECKING:
    from small_doge.processor.quality import QualityOptions
    from small_doge.processor.token_stream import DocumentEncoder

DOCUMENTS_A_BATCH = 512
NOTE = "note"
"""Stands where the reason of a dropped row would: this entry is no row, its detail is a note of the report."""


@dataclass(slots=True)
class EncodedDocument:
    """A document's tokens, with what mixing asks of its text: its length and its place for the split."""

    tokens: NDArray[np.int32]
    characters: int
    position: int
    origin: str


class Recorder(Report):
    """A report that also keeps each drop and note in order, so that reading the encoded file can tell it again."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, str]] = []

    def drop(self, source: str, reason: str, origin: str, detail: str = "") -> None:
        super().drop(source, reason, origin, detail)
        self.events.append((reason, origin, detail))

    def note(self, line: str) -> None:
        super().note(line)
        self.events.append((NOTE, "", line))


@dataclass
class DocumentFile:
    """Encodes the documents of one input file, and writes them.

    Attributes:
        source: the name that its rows are counted under.
        encoder: makes the tokens.
        quality: its blocks are applied as far as each text can be judged alone; the keys of exact duplicates are kept
            for the reader.
        text_field: the column of the text.
    """

    source: str
    encoder: DocumentEncoder
    quality: QualityOptions
    text_field: str = "text"
    tokens: int = field(default=0, init=False)

    def write(self, rows: Iterator[Row], report: Recorder, path: Path) -> None:
        """Write `path`, whole or not at all; `report` is the one that `rows` counts unreadable rows in."""
        import pyarrow as pa

        file = ArrowFile(path, _schema())
        entries = self._entries(rows, report)
        while batch := list(islice(entries, DOCUMENTS_A_BATCH)):
            texts = [entry.pop("text") for entry in batch]
            encoded = iter(self.encoder([text for text in texts if text is not None]))
            for entry, text in zip(batch, texts, strict=True):
                entry["tokens"] = None if text is None else next(encoded)
                self.tokens += 0 if text is None else len(entry["tokens"])
            file.write(pa.Table.from_pylist(batch, schema=_schema()))
        file.close()

    def _entries(self, rows: Iterator[Row], report: Recorder) -> Iterator[dict[str, Any]]:
        first, costly = self.quality.first_blocks(), self.quality.costly_blocks()
        for document in documents_of(rows, self.source, self.text_field, report):
            yield from _events(report)
            key = None
            reason = next((reason for block in first if (reason := block(document.text)) is not None), None)
            if reason is None and self.quality.exact_duplicates:
                key = ExactDuplicates.key(document.text)
            if reason is None:
                reason = next((reason for block in costly if (reason := block(document.text)) is not None), None)
            yield _entry(document, key, reason)
        yield from _events(report)


def read_encoded(
    path: Path, source: str, report: Report, duplicates: ExactDuplicates | None
) -> Iterator[EncodedDocument]:
    """Yield the documents of an encoded file, and count in `report` what reading its input would have counted."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        for batch in pa.ipc.open_stream(file):
            tokens = batch.column("tokens")
            values, offsets = tokens.values.to_numpy(zero_copy_only=True), tokens.offsets.to_numpy()
            others = batch.drop_columns(["tokens"]).to_pylist()
            for number, entry in enumerate(others):
                if entry["reason"] == NOTE:
                    report.note(entry["detail"])
                    continue
                report.read[source] += 1
                reason = duplicates.judge(entry["key"]) if duplicates is not None and entry["key"] else None
                reason = reason or entry["reason"]
                if reason is not None:
                    report.drop(source, reason, entry["origin"], entry["detail"])
                    continue
                report.kept[source] += 1
                ids = np.array(values[offsets[number] : offsets[number + 1]])
                yield EncodedDocument(ids, entry["characters"], entry["position"], entry["origin"])


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "tokens": pa.list_(pa.int32()),
            "characters": pa.int64(),
            "position": pa.uint64(),
            "key": pa.binary(),
            "origin": pa.string(),
            "reason": pa.string(),
            "detail": pa.string(),
        }
    )


def _entry(document: Document, key: bytes | None, reason: str | None) -> dict[str, Any]:
    return {
        "text": document.text if reason is None else None,
        "characters": document.characters,
        "position": document.position,
        "key": key,
        "origin": document.origin,
        "reason": reason,
        "detail": "",
    }


def _events(report: Recorder) -> Iterator[dict[str, Any]]:
    for reason, origin, detail in report.events:
        yield {"text": None, "key": None, "origin": origin, "reason": reason, "detail": detail}
    report.events.clear()
