"""Lays token sequences out in rows so that a shared prefix is computed once: each row is a tree of tokens.

The nodes of a tree stand in depth-first order. A node's position is its depth, and its key is seen up to the end of
its subtree: the `limit` of dynamic mask attention, the same that keeps packed documents apart. So four answers to one
question cost the question once, and a few-shot prompt is computed once a row, with the logits of separate forwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

NEVER = -1
"""Limit of a node after whose subtree nothing follows in its row."""


@dataclass
class Row:
    """A tree of tokens in depth-first order.

    Args:
        ids, depth, limit: Of each node; the limit is the node after its subtree, or `NEVER`.
        asked: For each sequence of the row, the nodes of its last tokens, after which something is to be predicted.
    """

    ids: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    limit: list[int] = field(default_factory=list)
    asked: dict[int, list[int]] = field(default_factory=dict)
    path: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, sequence: list[int], shared: int) -> None:
        """Branch off after the first `shared` tokens of the last sequence."""
        for node in self.path[shared:]:
            self.limit[node] = len(self)
        new = len(sequence) - shared
        self.path = [*self.path[:shared], *range(len(self), len(self) + new)]
        self.ids += sequence[shared:]
        self.depth += range(shared, len(sequence))
        self.limit += [NEVER] * new


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Number of tokens that both begin with."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


def build_rows(sequences: Sequence[list[int]], asked: Sequence[int], longest: int, token_cost: float) -> list[Row]:
    """Rows that hold every sequence.

    Neighbours in lexicographic order share most, so they are walked in that order. With a prefix of P tokens, computed
    once a row, and a row's m continuations of n tokens, in which every query meets every key, the work for each is
    (token_cost * P + (P + m * n) ** 2) / m beside what it costs anyway, and least at m * n = sqrt(token_cost * P +
    P ** 2): a sequence joins the row of the one before until the row is that much longer than what they share.

    Args:
        sequences: Token ids.
        asked: For each sequence, how many of its last tokens are asked what follows them.
        longest: Most tokens of a row that branches: at most the keep window, within which no key is ever dropped. At 0
            no row branches.
        token_cost: Cost of a token outside attention, measured in pairs of a query and a key.
    """
    rows: list[Row] = []
    previous = np.empty(0, np.int64)
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        sequence = sequences[index]
        tokens = np.array(sequence)
        shared = common_prefix(previous, tokens)
        new = len(sequence) - shared
        length = len(rows[-1]) if rows else 0
        worth = (length - shared) ** 2 <= token_cost * shared + shared**2
        if not rows or (new and not (worth and length + new <= longest)):
            rows.append(Row())
            shared = 0
        rows[-1].add(sequence, shared)
        rows[-1].asked[index] = rows[-1].path[len(sequence) - asked[index] :]
        previous = tokens
    return rows


def batch_rows(rows: Sequence[Row], batch_tokens: int, keep_window: int) -> Iterator[list[Row]]:
    """Rows of like length together, at most `batch_tokens` padded tokens; none within the window beside one beyond."""
    ordered = sorted(rows, key=len, reverse=True)
    start = 0
    while start < len(ordered):
        longest = len(ordered[start])
        batch = ordered[start : start + max(1, batch_tokens // longest)]
        if longest > keep_window:
            batch = [row for row in batch if len(row) > keep_window]
        start += len(batch)
        yield batch
