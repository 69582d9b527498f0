"""Packed rows on disk: Arrow shards written one at a time, read back as a `DatasetDict`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_doge.processor.report import Report

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

ROWS_A_BATCH = 1024
SHARD_NAME = "shard-{:05d}.arrow"


class ArrowFile:
    """Writes tables as one Arrow stream, the format of `datasets`; the file appears at `close`, whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._partial = path.with_suffix(".partial")
        self._file = pa.OSFile(str(self._partial), "wb")
        self._stream = pa.ipc.new_stream(self._file, schema)

    def write(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        self._stream.write_table(table, max_chunksize=ROWS_A_BATCH)

    def close(self) -> None:
        """Bring all to the disk under the file's own name."""
        self._stream.close()
        self._file.close()
        with open(self._partial, "rb") as done:
            os.fsync(done.fileno())
        os.replace(self._partial, self.path)


def shard_path(folder: Path, number: int) -> Path:
    """Where the shard of this number is."""
    return folder / SHARD_NAME.format(number)


def write_shard(folder: Path, number: int, tables: Iterable[pa.Table], schema: pa.Schema) -> Path:
    """Write tables as one shard and return its path."""
    file = ArrowFile(shard_path(folder, number), schema)
    for table in tables:
        file.write(table)
    file.close()
    return file.path


def write_json_lines(path: Path, folder: Path, rows_a_batch: int = 1000) -> Path:
    """Turn a file of JSON objects into one shard whose columns are all the fields that occur, to any depth."""
    import pyarrow as pa

    def batches() -> Iterator[list[dict[str, Any]]]:
        with open(path, encoding="utf-8") as file:
            while lines := list(islice(file, rows_a_batch)):
                yield [json.loads(line) for line in lines]

    def schema_of(batch: list[dict[str, Any]]) -> pa.Schema:
        # A table made from rows would take its columns from the first row alone; a struct array looks at all of them.
        return pa.schema(pa.array(batch).type)

    schema = pa.unify_schemas([schema_of(batch) for batch in batches()], promote_options="permissive")
    return write_shard(folder, 0, (pa.Table.from_pylist(batch, schema=schema) for batch in batches()), schema)


def read_shards(folder: Path, empty: dict[str, Any] | None = None) -> Dataset:
    """The shards of a folder as one memory-mapped data set; where there is none, one without rows.

    `empty` gives the features (name to type) of a data set without rows.
    """
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    shards = [Dataset.from_file(str(path)) for path in sorted(folder.glob("shard-*.arrow"))]
    if not shards:
        features = Features({name: List(Value(kind)) for name, kind in (empty or {}).items()})
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return concatenate_datasets(shards)


def check_output(output: Path, parts: Iterable[str] = ("train", "test")) -> None:
    """Refuse a folder whose parts hold files that are not ours: `publish` would delete them.

    Raises:
        ValueError: with the first such file.
    """
    for part in parts:
        for path in sorted((output / part).rglob("*")):
            if path.suffix not in (".arrow", ".partial") and path.name not in ("dataset_info.json", "state.json"):
                raise ValueError(f"{path} is no part of a data set, and would be deleted: name another output folder.")


def publish(parts: dict[Any, Dataset], report: Report, cache: Path, output: Path) -> None:
    """Make the folder that `load_from_disk` reads of shards in `cache`, without copying where a hard link can be made.

    Equal shards give equal folders, byte for byte. `dataset_dict.json` is written last: without it the folder holds no
    data set yet, and the call can be repeated.
    """
    (output / "dataset_dict.json").unlink(missing_ok=True)
    for part, dataset in parts.items():
        shutil.rmtree(output / part, ignore_errors=True)
        (output / part).mkdir(parents=True)
        shards = sorted((cache / part).glob("shard-*.arrow"))
        if not shards:
            shards = [write_shard(cache / "empty" / part, 0, [], dataset.features.arrow_schema)]
        for shard in shards:
            try:
                os.link(shard, output / part / shard.name)
            except OSError:
                shutil.copy2(shard, output / part / shard.name)
        dataset.info.write_to_directory(str(output / part))
        state = {
            "_data_files": [{"filename": shard.name} for shard in shards],
            "_fingerprint": f"{cache.name}-{part}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": part,
        }
        (output / part / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    report.save(output)
    (output / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}) + "\n")


def shard_counts(parts: dict[Any, Dataset]) -> dict[Any, int | None]:
    """`num_shards` for `save_to_disk`: one for a part without rows, which `datasets` could not load without any."""
    return {name: None if len(part) else 1 for name, part in parts.items()}


def with_report(parts: dict[str, Dataset], report: Report, cache: Path) -> DatasetDict:
    """A `DatasetDict` whose `report` says what became of the input; `save_to_disk` writes it as data_report.json."""
    from datasets import DatasetDict

    class ReportedDatasetDict(DatasetDict):
        """A `DatasetDict` that carries its report, and the folder its shards are in."""

        report: Report
        cache: Path

        def save_to_disk(self, dataset_dict_path: Any, *args: Any, **kwargs: Any) -> None:
            super().save_to_disk(dataset_dict_path, *args, **{"num_shards": shard_counts(self), **kwargs})
            self.report.save(str(dataset_dict_path))

    reported = ReportedDatasetDict(parts)
    reported.report, reported.cache = report, cache
    return reported
