"""Reading rows back at memory speed: views into the memory-mapped Arrow data instead of Python lists."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class RowBatch:
    """Rows read together.

    Attributes:
        columns: by name, an int64 array (rows, longest row). Where a row is shorter, its end is 0.
        row_lengths: tokens of each row, (rows,).
        seq_lengths: the documents' lengths, those of all rows one after another; a row without them is one document.
        seq_counts: documents of each row, (rows,); `seq_counts` of one row add up to its part of `seq_lengths`.
    """

    columns: dict[str, NDArray[np.int64]]
    row_lengths: NDArray[np.int64]
    seq_lengths: NDArray[np.int64]
    seq_counts: NDArray[np.int64]

    def position_ids(self) -> NDArray[np.int64]:
        """Positions that start again from 0 at each document, (rows, longest row); a shorter row's end is all 0."""
        width = int(self.row_lengths.max(initial=0))
        if not (self.row_lengths == width).all():
            positions = np.zeros((len(self.row_lengths), width), dtype=np.int64)
            inside = np.arange(width) < self.row_lengths[:, None]
            positions[inside] = position_ids(self.seq_lengths)
            return positions
        return position_ids(self.seq_lengths).reshape(-1, width)

    def padding(self) -> NDArray[np.bool_]:
        """True where a row has no token, (rows, longest row)."""
        return np.arange(int(self.row_lengths.max(initial=0))) >= self.row_lengths[:, None]


class RowReader:
    """A map-style data set over list columns of a `datasets.Dataset`, for `torch.utils.data.DataLoader` or by hand.

    `reader[i]` gives a dict of read-only numpy views (int32 `input_ids`, int32 `seq_lengths`, ...), without copying.
    `reader.batch([3, 8, 1])` gives a `RowBatch` whose arrays `torch.from_numpy` takes as they are; a `DataLoader` asks
    for whole batches by itself (through `__getitems__`) and hands the `RowBatch` to its `collate_fn`. An order of the
    rows made by `Dataset.shuffle` or `select` is kept. It can be pickled for worker processes, and any row is as near
    as any other, so that a run resumes where it stopped.

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

    def batch(self, indices: Sequence[int]) -> RowBatch:
        """The rows of these indices as arrays, one copy and no Python list of tokens.

        Raises:
            IndexError: an index is outside the data set.
        """
        rows = [self[int(index)] for index in indices]
        names = [name for name in self.columns if name != "seq_lengths"]
        sizes = np.fromiter((len(row[names[0]]) for row in rows), np.int64, len(rows))
        columns = {name: np.zeros((len(rows), int(sizes.max(initial=0))), dtype=np.int64) for name in names}
        for name, values in columns.items():
            for number, row in enumerate(rows):
                values[number, : sizes[number]] = row[name]
        if "seq_lengths" in self.columns:
            lengths = [row["seq_lengths"] for row in rows]
        else:
            lengths = [sizes[number : number + 1] for number in range(len(rows))]
        return RowBatch(
            columns=columns,
            row_lengths=sizes,
            seq_lengths=np.concatenate([sizes[:0], *lengths]),
            seq_counts=np.fromiter(map(len, lengths), np.int64, len(rows)),
        )

    __getitems__ = batch

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "columns": self.columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def position_ids(seq_lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of packed rows, from 0 again at each piece: [3, 2] gives [0, 1, 2, 0, 1]."""
    starts = np.cumsum(seq_lengths) - seq_lengths
    return np.arange(int(seq_lengths.sum())) - np.repeat(starts, seq_lengths)
