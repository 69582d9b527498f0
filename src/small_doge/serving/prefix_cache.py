"""Which cached sequence a prompt begins with, and what to keep for the next one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

# Below this length a prefill costs less than looking after the entry.
SHORTEST = 16


@dataclass(frozen=True)
class Plan:
    """How to prefill a prompt.

    Args:
        row: The row that holds the first `length` tokens of it; None where none does.
        length: Tokens that need no prefill.
        snapshots: Lengths at which the sequence is worth keeping, in order.
    """

    row: int | None
    length: int
    snapshots: tuple[int, ...]


class PrefixCache:
    """Remembers which tokens each of a few spare rows of the engine holds; the least recently used row is given away.

    A bounded cache cannot go back, so a row helps only a prompt that begins with all of its tokens. Where a prompt
    parts from a row midway, the common beginning (a system prompt, say) is kept by itself for the prompts to come.

    Args:
        rows: Rows of the session that are the cache's own; none switches it off.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._free = list(rows)
        self._entries: OrderedDict[tuple[int, ...], int] = OrderedDict()

    def plan(self, prompt: Sequence[int]) -> Plan:
        """The longest cached beginning of `prompt`, and where to take snapshots.

        At least the last token is left to prefill, because its logits are wanted.
        """
        if not self._free and not self._entries:
            return Plan(None, 0, ())
        tokens = tuple(prompt)
        best: tuple[int, ...] = ()
        shared = 0
        for entry in self._entries:
            common = _common(entry, tokens)
            shared = max(shared, min(common, len(tokens) - 1))
            if common == len(entry) < len(tokens) and common > len(best):
                best = entry
        row = None
        if best:
            self._entries.move_to_end(best)
            row = self._entries[best]
        wanted = {shared, len(tokens) - 1}
        return Plan(row, len(best), tuple(sorted(n for n in wanted if n >= SHORTEST and n > len(best))))

    def keep(self, tokens: Sequence[int]) -> int | None:
        """The row that a sequence of these tokens is to be copied to; None where it is kept already or is too short."""
        key = tuple(tokens)
        if len(key) < SHORTEST or not (self._free or self._entries):
            return None
        if key in self._entries:
            self._entries.move_to_end(key)
            return None
        row = self._free.pop() if self._free else self._entries.popitem(last=False)[1]
        self._entries[key] = row
        return row

    def clear(self) -> None:
        """Forget everything."""
        self._free += self._entries.values()
        self._entries.clear()


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the common beginning."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length  # a common beginning of length `low` is sure, one of length `high` is not there
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
