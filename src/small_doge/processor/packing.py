"""Packing token sequences into rows: best fit, boundaries kept, nothing cut off."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


Piece = tuple[int, int]
"""A part of a sequence: where it starts in the flat tokens, and its length."""


@dataclass
class PackingStats:
    """What packing did. `tokens_in` always equals `tokens_out`.

    Attributes:
        sequences: sequences given.
        split: sequences longer than a row, continued in further rows.
        cut_to_fill: cuts made to have as few rows as can be.
        pieces: sequences and parts of sequences placed.
        rows: rows made.
        tokens_in, tokens_out: tokens given and placed.
        max_length: tokens a row can hold.
    """

    max_length: int
    sequences: int = 0
    split: int = 0
    cut_to_fill: int = 0
    pieces: int = 0
    rows: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def padding_rate(self) -> float:
        """Share of the rows' room that stays empty; a trainer that pads to `max_length` wastes this share."""
        return 1 - self.tokens_out / (self.rows * self.max_length) if self.rows else 0.0

    @property
    def truncation_rate(self) -> float:
        """Share of the tokens given that were cut off: 0, since long sequences continue in further rows."""
        return 1 - self.tokens_out / self.tokens_in if self.tokens_in else 0.0

    def add(self, other: PackingStats) -> None:
        """Add the counts of another round of packing."""
        for name in ("sequences", "split", "cut_to_fill", "pieces", "rows", "tokens_in", "tokens_out"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, Any]:
        """The counts and the two rates."""
        return {**asdict(self), "padding_rate": self.padding_rate, "truncation_rate": self.truncation_rate}


@dataclass
class PackedRows:
    """Rows as flat arrays: row i holds `counts[i]` pieces; all pieces' lengths and tokens follow one another.

    Attributes:
        columns: for each column name, the values of all rows, flat.
        lengths: the lengths of the pieces, in order of row.
        counts: the number of pieces of each row.
    """

    columns: dict[str, NDArray[Any]]
    lengths: NDArray[np.int32]
    counts: NDArray[np.int32]

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table: one list column a name, and `seq_lengths`, the lengths of the pieces in a row."""
        import pyarrow as pa

        piece_offsets = np.concatenate([[0], np.cumsum(self.counts)])
        token_offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])[piece_offsets]
        assert token_offsets[-1] < 2**31, "pack fewer than 2**31 tokens at a time"
        arrays = {
            name: pa.ListArray.from_arrays(pa.array(token_offsets.astype(np.int32)), pa.array(values))
            for name, values in self.columns.items()
        }
        arrays["seq_lengths"] = pa.ListArray.from_arrays(
            pa.array(piece_offsets.astype(np.int32)), pa.array(self.lengths.astype(np.int32))
        )
        return pa.table(arrays)


def split_lengths(
    lengths: Sequence[int] | NDArray[Any], max_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut sequences into pieces of at most `max_length`: their starts (in the flat tokens) and their lengths."""
    sizes = np.asarray(lengths, dtype=np.int64)
    parts = -(-sizes // max_length)
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = np.repeat(first, parts) + number * max_length
    ends = np.minimum(starts + max_length, np.repeat(first + sizes, parts))
    return starts, ends - starts


def best_fit(lengths: NDArray[np.int64], max_length: int) -> list[list[int]]:
    """Place pieces into rows of `max_length`, longest first, each where the least room is left (best fit decreasing).

    Returns, for each row, the indices of its pieces.
    Source: "Fewer Truncations Improve Language Modeling", arXiv 2404.10830, section 3.
    """
    rows: list[list[int]] = []
    rows_with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row = len(rows)
            rows.append([])
            room = max_length
        else:
            room = rooms[at]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms.pop(at)
        rows[row].append(index)
        room -= length
        if room:
            waiting = rows_with_room.setdefault(room, [])
            if not waiting:
                insort(rooms, room)
            waiting.append(row)
    return rows


def fill_rows(rows: list[list[Piece]], max_length: int) -> list[list[Piece]]:
    """Dissolve the emptiest rows into the room left in the others, so that the fewest rows possible remain.

    Pieces that fit nowhere whole are cut. All rows together then lack less than one row's tokens.
    """
    total = sum(length for row in rows for _, length in row)
    target = -(-total // max_length)
    load = [sum(length for _, length in row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-load[i], i))
    loose = sorted((piece for i in order[target:] for piece in rows[i]), key=lambda piece: -piece[1])
    kept = [list(rows[i]) for i in sorted(order[:target])]
    rooms = sorted((max_length - sum(length for _, length in row), i) for i, row in enumerate(kept))
    for start, length in loose:
        while length:
            at = min(bisect_left(rooms, (length, -1)), len(rooms) - 1)
            room, i = rooms.pop(at)
            put = min(room, length)
            if put:
                kept[i].append((start, put))
                start, length = start + put, length - put
            if room > put:
                insort(rooms, (room - put, i))
    return kept


def pack(
    columns: dict[str, NDArray[Any]],
    lengths: Sequence[int] | NDArray[Any],
    max_length: int,
    rng: np.random.Generator | None = None,
    fill: bool = False,
) -> tuple[PackedRows, PackingStats]:
    """Pack sequences into rows of at most `max_length` tokens; with `rng`, the rows come in random order.

    Args:
        columns: flat values, one array a column (for example `input_ids`), all as long as `lengths` adds up to.
        lengths: the lengths of the sequences, in order; a longer one than `max_length` becomes several pieces.
        max_length: tokens a row can hold.
        fill: also cut the few sequences that find no whole place, so that there are as few rows as can be.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    total = int(sizes.sum())
    assert all(len(values) == total for values in columns.values())
    assert max_length > 0
    assert len(sizes) == 0 or sizes.min() > 0
    starts, piece_lengths = split_lengths(sizes, max_length)
    pieces: list[Piece] = list(zip(starts.tolist(), piece_lengths.tolist(), strict=True))
    rows = [[pieces[i] for i in row] for row in best_fit(piece_lengths, max_length)]
    if fill:
        rows = fill_rows(rows, max_length)
    if rng is not None:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    placed = np.array([piece for row in rows for piece in row], dtype=np.int64).reshape(-1, 2)
    packed = PackedRows(
        columns={
            name: np.concatenate([values[:0], *(values[start : start + size] for start, size in placed.tolist())])
            for name, values in columns.items()
        },
        lengths=placed[:, 1].astype(np.int32),
        counts=np.fromiter(map(len, rows), dtype=np.int32, count=len(rows)),
    )
    stats = PackingStats(
        max_length=max_length,
        sequences=len(sizes),
        split=int((sizes > max_length).sum()),
        cut_to_fill=len(placed) - len(pieces),
        pieces=len(placed),
        rows=len(rows),
        tokens_in=total,
        tokens_out=int(placed[:, 1].sum()),
    )
    return packed, stats


def one_piece_a_row(
    columns: dict[str, NDArray[Any]], lengths: Sequence[int] | NDArray[Any], max_length: int
) -> tuple[PackedRows, PackingStats]:
    """Rows without packing: each holds one sequence, or one part of a sequence longer than `max_length`."""
    _, piece_lengths = split_lengths(lengths, max_length)
    total = int(piece_lengths.sum())
    stats = PackingStats(
        max_length=max_length,
        sequences=len(lengths),
        split=int((np.asarray(lengths) > max_length).sum()),
        pieces=len(piece_lengths),
        rows=len(piece_lengths),
        tokens_in=total,
        tokens_out=total,
    )
    ones = np.ones(len(piece_lengths), dtype=np.int32)
    return PackedRows(columns, piece_lengths.astype(np.int32), ones), stats
