"""Find near copies among many short texts: shingles, a bottom-k sketch, and buckets of equal minima (MinHash).

The estimate of the Jaccard similarity from the k smallest hashes of the union is Broder's, "On the resemblance and
containment of documents" (1997); one hash function split over bins instead of many permutations is Li, Owen and Zhang,
"One Permutation Hashing" (2012).
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Sequence
from zlib import crc32

_WORD = re.compile(r"[a-z]+")
_MASK = 0xFFFFFFFF
SKETCH = 64  # smallest shingle hashes kept a text
BINS = 16  # minima a text, looked up in pairs
_BUCKET_LIMIT = 12  # texts of one bucket that a new one is compared with


class NearDuplicates:
    """Sorts texts, given in order, into new ones and near copies, and gathers similar ones into groups.

    Two texts of estimated Jaccard similarity (over runs of three words, digits and case ignored) of at least
    `duplicate` are near copies; from `similar` on they are kept but belong to one group.
    """

    def __init__(self, duplicate: float = 0.7, similar: float = 0.4) -> None:
        self.duplicate = duplicate
        self.similar = similar
        self._sketches: list[array] = []
        self._buckets: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        self._parent: list[int] = []
        self._word_hash: dict[str, int] = {}

    def add(self, text: str, ignore: Sequence[str] = ()) -> bool:
        """Take in one text; True where it is new. Words in `ignore` (say, its own name) do not count."""
        shingles = self._shingles(text, frozenset(w for i in ignore for w in _WORD.findall(i.lower())))
        sketch = array("L", sorted(shingles)[:SKETCH])
        keys = self._keys(shingles)
        # Compared in order of position, so that the outcome is the same on every run.
        near = sorted({other for key in keys for other in self._buckets.get(key, ())})
        alike = {other: s for other in near if (s := _jaccard(sketch, self._sketches[other])) >= self.similar}
        if any(similarity >= self.duplicate for similarity in alike.values()):
            return False
        index = len(self._sketches)
        self._sketches.append(sketch)
        self._parent.append(index)
        for other in alike:
            self._join(index, other)
        for key in keys:
            if len(self._buckets[key]) < _BUCKET_LIMIT:
                self._buckets[key].append(index)
        return True

    def group(self, index: int) -> int:
        """The position of the first member of the group that the `index`-th new text belongs to."""
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def _join(self, a: int, b: int) -> None:
        a, b = self.group(a), self.group(b)
        self._parent[max(a, b)] = min(a, b)

    def _shingles(self, text: str, ignored: frozenset[str]) -> set[int]:
        known = self._word_hash
        hashes = []
        for word in _WORD.findall(text.lower()):
            if word not in ignored:
                value = known.get(word)
                if value is None:
                    value = known[word] = crc32(word.encode()) | 1
                hashes.append(value)
        return {
            ((a * 0x9E3779B1 ^ b * 0x85EBCA77 ^ c * 0xC2B2AE3D) * 0x27D4EB2F >> 7) & _MASK
            for a, b, c in zip(hashes, hashes[1:], hashes[2:], strict=False)
        } or set(hashes)

    @staticmethod
    def _keys(shingles: set[int]) -> list[tuple[int, int, int]]:
        minima = [_MASK] * BINS
        for shingle in shingles:
            position = shingle % BINS
            if shingle < minima[position]:
                minima[position] = shingle
        pairs = [(i, minima[i], minima[i + 1]) for i in range(0, BINS, 2)]
        return [pair for pair in pairs if pair[1] != _MASK or pair[2] != _MASK]


def _jaccard(a: array, b: array) -> float:
    """Jaccard similarity of two texts, estimated from the smallest hashes of each (exact for short texts)."""
    first, second = set(a), set(b)
    union = sorted(first | second)[:SKETCH]
    if not union:
        return 1.0
    return sum(1 for x in union if x in first and x in second) / len(union)
