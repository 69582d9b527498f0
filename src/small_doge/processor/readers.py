"""Rows from files: .txt, .md, .json, .jsonl (plain, .gz, .zst) and .parquet, each with the place it came from."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_doge.processor.report import Report

TEXT_SUFFIXES = (".txt", ".md")
LINE_SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz")
SUFFIXES = (*TEXT_SUFFIXES, ".json", *LINE_SUFFIXES, ".parquet")
CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class Row:
    """One row: its fields, and `origin`, the place it was read from (`file:line`, `file` or `name#number`)."""

    fields: dict[str, Any]
    origin: str


def is_pattern(path: str | Path) -> bool:
    """Whether a path is a pattern such as `data/docs_*.jsonl.zst` and not the name of something that is there."""
    return any(mark in str(path) for mark in "*?[") and not Path(path).exists()


def list_files(path: str | Path) -> list[Path]:
    """The readable files at `path`, in order of name: a file, a folder searched to any depth, or a pattern.

    Raises:
        ValueError: nothing is there, the folder holds no file we read, or the file is of another kind.
    """
    known = ", ".join(SUFFIXES)
    if is_pattern(path):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [file for file in found if file.is_file() and file.name.lower().endswith(SUFFIXES)]
        if not files:
            raise ValueError(f"No file of the kinds {known} matches {path}: correct the pattern.")
        return files
    path = Path(path)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise ValueError(f"Cannot read {path}: convert it to one of {known}.")
        return [path]
    if not path.is_dir():
        raise ValueError(f"There is no file or folder {path}: correct the path.")
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.lower().endswith(SUFFIXES))
    if not files:
        raise ValueError(f"The folder {path} holds no data: put files of these kinds there: {known}.")
    return files


def read_file_rows(path: Path, report: Report, source: str, on_truncated: str = "refuse") -> Iterator[Row]:
    """Yield the rows of one file; a text file is one row with the field `text`.

    A line that is not UTF-8 or not a JSON object is counted in `report` under `source` with file and line, and the
    reading goes on. A compressed file that breaks off is refused when the break is reached; with
    `on_truncated="keep"` the whole lines before the break are kept, and the broken one is counted.

    Raises:
        ValueError: the file is empty, binary or truncated, with the mend.
    """
    name = path.name.lower()
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): fetch it again or delete it.")
    if name.endswith(LINE_SUFFIXES):
        yield from _read_lines(path, report, source, on_truncated)
    elif name.endswith(TEXT_SUFFIXES):
        yield from _read_text(path, report, source)
    elif name.endswith(".json"):
        yield from _read_json(path, report, source)
    else:
        yield from _read_parquet(path)


def _read_text(path: Path, report: Report, source: str) -> Iterator[Row]:
    data = path.read_bytes()
    if b"\0" in data[:CHUNK_BYTES]:
        raise ValueError(f"{path} is not text but binary data: remove it or convert it to UTF-8 text.")
    try:
        yield Row({"text": data.decode("utf-8")}, str(path))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _bad_row(report, source, "invalid UTF-8", f"{path}:{line}", error.reason)


def _read_json(path: Path, report: Report, source: str) -> Iterator[Row]:
    try:
        data = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): mend it, or rename it to .jsonl if it is one object a line."
        ) from None
    for number, item in enumerate(data if isinstance(data, list) else [data]):
        if isinstance(item, dict):
            yield Row(item, f"{path}#{number}")
        else:
            _bad_row(report, source, "not a JSON object", f"{path}#{number}", type(item).__name__)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                yield Row(fields, f"{path}:{number}")
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as parquet ({reason}): fetch it again or delete it.") from None


def _read_lines(path: Path, report: Report, source: str, on_truncated: str) -> Iterator[Row]:
    rest = b""
    number = 0
    try:
        for chunk in _chunks(path):
            if number == 0 and b"\0" in chunk:
                raise ValueError(f"{path} is not text but binary data: remove it or convert it to UTF-8 JSON lines.")
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                number += 1
                row = _parse_line(line, path, number, report, source)
                if row is not None:
                    yield row
    except EOFError:
        if on_truncated != "keep":
            raise ValueError(
                f"{path} breaks off after line {number}: fetch it again, "
                f"or pass on_truncated='keep' to use those {number} lines."
            ) from None
        report.note(f"{path} breaks off: its {number} whole lines were used, the rest is lost.")
        if rest:
            _bad_row(report, source, "truncated line", f"{path}:{number + 1}")
        return
    if rest:
        row = _parse_line(rest, path, number + 1, report, source)
        if row is not None:
            yield row


def _parse_line(line: bytes, path: Path, number: int, report: Report, source: str) -> Row | None:
    if not line.strip():
        return None
    try:
        fields = json.loads(line)
    except UnicodeDecodeError as error:
        _bad_row(report, source, "invalid UTF-8", f"{path}:{number}", error.reason)
    except json.JSONDecodeError as error:
        _bad_row(report, source, "unreadable line", f"{path}:{number}", error.msg)
    else:
        if isinstance(fields, dict):
            return Row(fields, f"{path}:{number}")
        _bad_row(report, source, "not a JSON object", f"{path}:{number}", type(fields).__name__)
    return None


def _bad_row(report: Report, source: str, reason: str, origin: str, detail: str = "") -> None:
    report.read[source] += 1
    report.drop(source, reason, origin, detail)


def _chunks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of `path` in pieces; raises EOFError where compressed data breaks off."""
    name = path.name.lower()
    if name.endswith(".zst"):
        yield from _zstd_chunks(path)
    elif name.endswith(".gz"):
        try:
            with gzip.open(path, "rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is not sound gzip data ({error}): fetch it again or delete it.") from None
    else:
        with open(path, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    import zstandard

    # zstandard's stream reader takes a file that breaks off for its end, so the frames are followed by hand.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = decompressor.decompressobj()
    fresh = True
    try:
        with open(path, "rb") as stream:
            while data := stream.read(CHUNK_BYTES):
                while data:
                    if frame.eof:
                        frame = decompressor.decompressobj()
                        fresh = True
                    chunk = frame.decompress(data)
                    fresh = False
                    if chunk:
                        yield chunk
                    data = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise ValueError(f"{path} is not sound zstd data ({error}): fetch it again or delete it.") from None
    if not fresh and not frame.eof:
        raise EOFError(path)
