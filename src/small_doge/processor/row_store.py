"""Packed rows on disk: Arrow shards written one at a time, read back as a `DatasetDict`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_doge.processor.report import Report

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

SHARD_NAME = "shard-{:05d}.arrow"


def write_shard(folder: Path, number: int, tables: list[pa.Table], rows_a_batch: int = 1024) -> Path:
    """Write tables as one Arrow stream, the format of `datasets`; the file appears whole or not at all."""
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SHARD_NAME.format(number)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        with pa.ipc.new_stream(file, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table, max_chunksize=rows_a_batch)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


def read_shards(folder: Path, features: dict[str, Any]) -> Dataset:
    """The shards of a folder as one memory-mapped data set, empty where there is none."""
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    types = Features({name: List(Value(kind)) for name, kind in features.items()})
    shards = [Dataset.from_file(str(path)) for path in sorted(folder.glob("shard-*.arrow"))]
    if not shards:
        return Dataset.from_dict({name: [] for name in types}, features=types)
    return concatenate_datasets([shard.cast(types) if shard.features != types else shard for shard in shards])


def with_report(parts: dict[str, Dataset], report: Report) -> DatasetDict:
    """A `DatasetDict` whose `report` says what became of the input; `save_to_disk` writes it as data_report.json."""
    from datasets import DatasetDict

    class ReportedDatasetDict(DatasetDict):
        """A `DatasetDict` that carries its report."""

        report: Report

        def save_to_disk(self, dataset_dict_path: Any, *args: Any, **kwargs: Any) -> None:
            super().save_to_disk(dataset_dict_path, *args, **kwargs)
            self.report.save(str(dataset_dict_path))

    reported = ReportedDatasetDict(parts)
    reported.report = report
    return reported
