"""Where rows come from: builtin sources, local files and folders, data sets saved by `datasets`, and the Hub."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from small_doge.processor.readers import SUFFIXES, Row, is_pattern, list_files, read_file_rows
from small_doge.processor.report import Report
from small_doge.processor.sources.catalog import SourceSpec, catalog
from small_doge.processor.sources.hub import hub_rows
from small_doge.processor.sources.software_heritage import with_files

SOURCES_ENV = "SMALL_DOGE_SOURCES"
BUILTIN_PREFIX = "builtin:"


def open_source(
    source: str,
    report: Report,
    *,
    split: str | None = None,
    revision: str | None = None,
    on_truncated: str = "refuse",
    **builtin_options: Any,
) -> Iterator[Row]:
    """Yield the rows of a source, by name.

    `builtin:NAME` is generated here; an existing path, or a pattern such as `data/*.jsonl`, is read from disk; a name
    of ours (`source_names`) is read from the folder of that name under $SMALL_DOGE_SOURCES if there is one, else from
    the Hub; so is `owner/name`.

    Args:
        source: the name.
        report: counts what cannot be read.
        split: of a saved data set or one on the Hub (default: the source's own, else `train`).
        revision: branch, tag or commit of a data set on the Hub (default: its main branch, as it is now).
        on_truncated: "refuse" or "keep", for compressed files that break off.
        builtin_options: arguments of a builtin source.

    Raises:
        ValueError: no such source, or it cannot be read, with the mend.
    """
    check_revision(source, revision)
    if source.startswith(BUILTIN_PREFIX):
        yield from _builtin_rows(source, builtin_options)
    elif Path(source).exists() or is_pattern(source):
        yield from local_rows(source, report, split=split, on_truncated=on_truncated)
    elif spec := catalog().get(source.lower()):
        local = local_copy(spec)
        if local is not None:
            rows = local_rows(local, report, split=split, on_truncated=on_truncated, name=source)
        else:
            rows = hub_rows(source, spec.hub_id, spec.config, split or spec.split, revision or spec.revision, report)
        yield from with_files(rows, report, source) if spec.fetch and local is None else rows
    elif _looks_like_path(source):
        raise ValueError(f"There is no file or folder {source}: correct the path.")
    elif source.count("/") == 1:
        yield from hub_rows(source, source, None, split or "train", revision, report)
    else:
        raise ValueError(
            f"Unknown source {source!r}{_nearest(source)}: "
            f"give a path, a Hub id owner/name, or one of {', '.join(source_names())}."
        )


def hub_address(source: str) -> tuple[str, str | None] | None:
    """Hub id and default revision of a source that is read from the Hub; None for one that is read elsewhere."""
    if source.startswith(BUILTIN_PREFIX) or Path(source).exists() or is_pattern(source):
        return None
    if spec := catalog().get(source.lower()):
        return None if local_copy(spec) else (spec.hub_id, spec.revision)
    return (source, None) if source.count("/") == 1 and not _looks_like_path(source) else None


def check_revision(source: str, revision: str | None) -> None:
    """Refuse a revision for a source that has none.

    Raises:
        ValueError: the source is not read from the Hub.
    """
    if revision is not None and hub_address(source) is None:
        raise ValueError(f"{source} is not read from the Hub, so it has no revision {revision!r}: leave it out.")


def source_names() -> list[str]:
    """Every source that can be used by name."""
    from small_doge.processor.builtin import BUILTIN_SOURCES

    return sorted([*BUILTIN_SOURCES, *(spec.name for spec in catalog().values())], key=str.lower)


def local_copy(spec: SourceSpec) -> Path | None:
    """The folder that holds a copy of a named source: $SMALL_DOGE_SOURCES/NAME, if it is there."""
    root = os.environ.get(SOURCES_ENV)
    folder = Path(root) / spec.name if root else None
    return folder if folder is not None and folder.exists() else None


def is_file_source(place: str | Path) -> bool:
    """Whether a source is local files, each readable by itself: a file, a folder or a pattern, not a saved data set."""
    folder = Path(place)
    saved = (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists()
    return (folder.exists() or is_pattern(place)) and not saved


def local_rows(
    path: str | Path, report: Report, *, split: str | None = None, on_truncated: str = "refuse", name: str | None = None
) -> Iterator[Row]:
    """Yield the rows of a local file, of a folder or pattern of files, or of a folder that `datasets` saved.

    What cannot be read is counted in `report` under `name` (default: the path as given).
    """
    if Path(path).exists() and not is_file_source(path):
        yield from _saved_rows(Path(path), split or "train")
        return
    for file in list_files(path):
        yield from read_file_rows(file, report, name or str(path), on_truncated)


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


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.lower().endswith(SUFFIXES) or source.count("/") > 1


def _nearest(source: str) -> str:
    close = difflib.get_close_matches(source, source_names(), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
