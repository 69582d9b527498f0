"""Words of a text, for counting: runs of letters and digits in lower case, and each Chinese character by itself."""

from __future__ import annotations

import re
import zlib

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def gram_hashes(words: list[str], size: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each run of `size` words, in order; empty where there are fewer words."""
    if len(words) < size:
        return np.zeros(0, dtype=np.uint64)
    codes = np.fromiter((zlib.crc32(word.encode()) + (len(word) << 32) for word in words), np.uint64, len(words))
    hashes = np.zeros(len(words) - size + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(size):
            hashes = (hashes ^ codes[offset : offset + len(hashes)]) * _MIX
            hashes ^= hashes >> np.uint64(29)
    return hashes
