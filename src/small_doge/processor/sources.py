"""Where rows come from: builtin sources, local files and folders, data sets saved by `datasets`, and the Hub."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from small_doge.processor.readers import SUFFIXES, Row, list_files, read_file_rows
from small_doge.processor.report import Report

BUILTIN_PREFIX = "builtin:"


def open_source(
    source: str, report: Report, *, split: str = "train", on_truncated: str = "refuse", **builtin_options: Any
) -> Iterator[Row]:
    """Yield the rows of a source, by name.

    `builtin:NAME` is generated here; an existing path is read from disk; `owner/name` comes from the Hub.

    Raises:
        ValueError: no such source, or it cannot be read, with the mend.
    """
    if source.startswith(BUILTIN_PREFIX):
        yield from _builtin_rows(source, builtin_options)
    elif Path(source).exists():
        yield from local_rows(source, report, split=split, on_truncated=on_truncated)
    elif _looks_like_path(source):
        raise ValueError(f"There is no file or folder {source}: correct the path.")
    elif source.count("/") == 1:
        yield from _hub_rows(source, split=split)
    else:
        raise ValueError(
            f"Unknown source {source!r}{_nearest(source)}: "
            f"give a path, a Hub id owner/name, or one of {', '.join(source_names())}."
        )


def source_names() -> list[str]:
    """Every source that can be used by name."""
    from small_doge.processor.builtin import BUILTIN_SOURCES

    return sorted(BUILTIN_SOURCES)


def local_rows(
    source: str | Path, report: Report, *, split: str = "train", on_truncated: str = "refuse"
) -> Iterator[Row]:
    """Yield the rows of a local file, of a folder of files, or of a folder that `datasets` saved."""
    path = Path(source)
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        yield from _saved_rows(path, split)
        return
    for file in list_files(path):
        yield from read_file_rows(file, report, str(source), on_truncated)


def _saved_rows(path: Path, split: str) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(str(path))
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"{path} has no split {split!r}: choose one of {', '.join(saved)}.")
        saved = saved[split]
    for number, fields in enumerate(saved):
        yield Row(fields, f"{path}#{number}")


def _builtin_rows(source: str, options: dict[str, Any]) -> Iterator[Row]:
    from small_doge.processor.builtin import BUILTIN_SOURCES

    if source not in BUILTIN_SOURCES:
        raise ValueError(f"Unknown source {source!r}{_nearest(source)}: choose one of {', '.join(source_names())}.")
    for number, fields in enumerate(BUILTIN_SOURCES[source](**options)):
        yield Row(fields, f"{source}#{number}")


def _hub_rows(source: str, *, split: str) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source, split=split, streaming=True)
        for number, fields in enumerate(rows):
            yield Row(fields, f"{source}:{split}#{number}")
    except (OSError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"Cannot reach {source} on the Hub ({reason}): "
            "connect, or give a local folder or file with the same columns instead."
        ) from None


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.lower().endswith(SUFFIXES) or source.count("/") > 1


def _nearest(source: str) -> str:
    close = difflib.get_close_matches(source, source_names(), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
