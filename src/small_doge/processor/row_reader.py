"""Reading rows back at memory speed: views into the memory-mapped Arrow data instead of Python lists."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset


class RowReader:
    """A map-style data set over list columns of a `datasets.Dataset`, for `torch.utils.data.DataLoader` or by hand.

    `reader[i]` gives a dict of read-only numpy views (int32 `input_ids`, int32 `seq_lengths`, ...), without copying. An
    order of the rows made by `Dataset.shuffle` or `select` is kept. It can be pickled for worker processes, and any row
    is as near as any other, so that a run resumes where it stopped.

    Raises:
        ValueError: a column is no list of numbers.
    """

    def __init__(self, dataset: Dataset, columns: list[str] | None = None) -> None:
        self.dataset = dataset
        self.columns = columns or dataset.column_names
        self._open()

    def _open(self) -> None:
        import pyarrow as pa

        table = self.dataset.data.table
        self.starts = [0]
        self.parts: list[dict[str, tuple[NDArray[Any], NDArray[Any]]]] = []
        for batch in table.select(self.columns).to_batches():
            part = {}
            for name in self.columns:
                column = batch.column(name)
                if not pa.types.is_list(column.type) or not pa.types.is_primitive(column.type.value_type):
                    raise ValueError(f"The column {name!r} is no list of numbers: name the columns to read.")
                part[name] = (column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=True))
            self.parts.append(part)
            self.starts.append(self.starts[-1] + len(batch))
        indices = self.dataset._indices
        self.order = None if indices is None else indices.column(0).to_numpy()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = int(index if self.order is None else self.order[index])
        number = bisect_right(self.starts, row) - 1
        at = row - self.starts[number]
        part = self.parts[number]
        return {name: values[offsets[at] : offsets[at + 1]] for name, (offsets, values) in part.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "columns": self.columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def position_ids(seq_lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Positions of a packed row, from 0 again at each piece: [3, 2] gives [0, 1, 2, 0, 1]."""
    total = int(seq_lengths.sum())
    starts = np.cumsum(seq_lengths) - seq_lengths
    return (np.arange(total) - np.repeat(starts, seq_lengths)).astype(np.int32)
