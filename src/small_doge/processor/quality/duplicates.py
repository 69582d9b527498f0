"""Leaving out texts that were there before, to the letter or nearly."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from small_doge.processor.quality.words import gram_hashes, words_of

SHINGLE_WORDS = 5
BANDS = 14
ROWS_A_BAND = 8


class ExactDuplicates:
    """A block that keeps the first of texts that are equal but for white space; memory: about 100 bytes a text."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, text: str) -> str | None:
        return self.judge(self.key(text))

    @staticmethod
    def key(text: str) -> bytes:
        """16 bytes that equal texts share."""
        return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()

    def judge(self, key: bytes) -> str | None:
        """Like the block itself, for a text that is no longer at hand."""
        if key in self.seen:
            return "exact duplicate"
        self.seen.add(key)
        return None


class NearDuplicates:
    """A block that keeps the first of texts that share most of their runs of 5 words.

    MinHash with 14 bands of 8 hashes: two texts whose sets of runs have Jaccard similarity s are taken for duplicates
    with probability 1 - (1 - s^8)^14, which is 0.05 at 0.5, 0.56 at 0.7, 0.92 at 0.8 and 1.0 at 0.9. Texts of fewer
    than 5 words are kept. Memory: about 1.5 kB a text.

    Source: Broder, "On the resemblance and containment of documents" (1997); the numbers of bands and hashes are those
    of FineWeb, arXiv 2406.17557.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.factors = rng.integers(1, 2**63, (BANDS * ROWS_A_BAND, 1), dtype=np.uint64) | np.uint64(1)
        self.offsets = rng.integers(0, 2**63, (BANDS * ROWS_A_BAND, 1), dtype=np.uint64)
        self.seen: list[set[bytes]] = [set() for _ in range(BANDS)]

    def signature(self, text: str) -> NDArray[np.uint64] | None:
        """The smallest of the runs' hashes under each of the 112 functions; None where there is no run."""
        runs = np.unique(gram_hashes(words_of(text), SHINGLE_WORDS))
        if not len(runs):
            return None
        least = np.full(BANDS * ROWS_A_BAND, np.iinfo(np.uint64).max, dtype=np.uint64)
        with np.errstate(over="ignore"):
            for start in range(0, len(runs), 4096):
                hashes = runs[start : start + 4096] * self.factors + self.offsets
                # The low bits of a product mix little: fold the high ones in.
                least = np.minimum(least, (hashes ^ (hashes >> np.uint64(32))).min(axis=1))
        return least

    def __call__(self, text: str) -> str | None:
        signature = self.signature(text)
        if signature is None:
            return None
        keys = [band.tobytes() for band in signature.reshape(BANDS, ROWS_A_BAND)]
        if any(key in seen for key, seen in zip(keys, self.seen, strict=True)):
            return "near duplicate"
        for key, seen in zip(keys, self.seen, strict=True):
            seen.add(key)
        return None
