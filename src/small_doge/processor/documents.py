"""Documents: text with its place of origin, from a builtin source, files of any common kind, or the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from small_doge.processor.readers import Row
from small_doge.processor.report import Report
from small_doge.processor.sources import open_source


@dataclass(slots=True)
class Document:
    """A text, its origin (`file:line`) and the group it is split with."""

    text: str
    origin: str
    group: str | None = None

    @property
    def characters(self) -> int:
        """How long the text is."""
        return len(self.text)

    @property
    def position(self) -> int:
        """Where the document falls among 2**64 places: a hash of its group, or else of its text."""
        return key_position(self.text if self.group is None else self.group)


def is_test(document: Any, share: float) -> bool:
    """Whether a document belongs to the test part: a fixed function of its group (or else its text) and of `share`.

    The hash is uniform, so about `share` of all groups are chosen; which ones never changes as data is added, and a
    larger share only adds to a smaller one.
    """
    return share > 0 and document.position < share * 2**64


def key_is_test(key: str, share: float) -> bool:
    """Whether what carries this key (a text or a group name) belongs to the test part."""
    return share > 0 and key_position(key) < share * 2**64


def key_position(key: str) -> int:
    """A 64-bit hash of a key, uniform and the same on every machine."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=b"doge-test").digest()
    return int.from_bytes(digest, "big")


def iter_documents(
    source: str,
    text_field: str = "text",
    *,
    report: Report | None = None,
    formatting_func: Callable[[dict[str, Any]], Any] | None = None,
    **options: Any,
) -> Iterator[Document]:
    """Yield the documents of a source: a builtin name, a local file or folder, a name of ours, or a Hub id.

    Rows without a usable text (missing field, wrong type, empty, or text that is no valid Unicode) are counted in
    `report` by source and reason with file and line; none is replaced. `options` go to `open_source`.

    Raises:
        ValueError: the source cannot be found or read, with the mend.
    """
    report = Report() if report is None else report
    return documents_of(open_source(source, report, **options), source, text_field, report, formatting_func)


def documents_of(
    rows: Iterable[Row],
    source: str,
    text_field: str,
    report: Report,
    formatting_func: Callable[[dict[str, Any]], Any] | None = None,
) -> Iterator[Document]:
    """Yield the documents of rows that were read from `source`; the others are counted in `report`."""
    for row in rows:
        report.read[source] += 1
        document = _document(row, text_field, formatting_func, report, source)
        if document is not None:
            report.kept[source] += 1
            yield document


def _document(
    row: Row, text_field: str, formatting_func: Callable[[dict[str, Any]], Any] | None, report: Report, source: str
) -> Document | None:
    fields: Any = row.fields
    if formatting_func is not None:
        fields = formatting_func(dict(fields))
        fields = {text_field: fields} if isinstance(fields, str) else fields
    if not isinstance(fields, dict) or text_field not in fields:
        have = ", ".join(sorted(map(str, fields)))[:80] if isinstance(fields, dict) else type(fields).__name__
        report.drop(source, f"no field {text_field!r}", row.origin, f"has {have}")
        return None
    text = fields[text_field]
    if not isinstance(text, str):
        report.drop(source, f"field {text_field!r} is not text", row.origin, type(text).__name__)
    elif not text.strip():
        report.drop(source, "empty text", row.origin)
    elif not _is_unicode(text):
        report.drop(source, "invalid UTF-8", row.origin, "a lone surrogate")
    else:
        group = row.fields.get("group")
        return Document(text, row.origin, None if group is None else str(group))
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
