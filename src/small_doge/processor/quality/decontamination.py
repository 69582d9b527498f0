"""Keeping evaluation data out of training data: no 13 words in a row in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from small_doge.processor.quality.words import gram_hashes, words_of
from small_doge.processor.report import Report
from small_doge.processor.sources import local_rows

GRAM_WORDS = 13


def evaluation_grams(paths: Iterable[str]) -> NDArray[np.uint64]:
    """The hashes, sorted, of all runs of 13 words in the text fields of evaluation files or folders.

    Texts of fewer than 13 words give none: a question that short is found in ordinary text by chance.

    Raises:
        ValueError: a path cannot be read, or nothing there has 13 words in a row.
    """
    hashes = [
        gram_hashes(words_of(text), GRAM_WORDS)
        for path in paths
        for row in local_rows(path, Report())
        for text in _texts(row.fields)
    ]
    grams = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *hashes]))
    if not len(grams):
        raise ValueError(f"No text in {', '.join(paths)} has {GRAM_WORDS} words in a row: give evaluation files.")
    return grams


class Decontamination:
    """A block that leaves out texts that share a run of 13 words with the evaluation data.

    Source: "Language Models are Few-Shot Learners", arXiv 2005.14165, appendix C.
    """

    def __init__(self, grams: NDArray[np.uint64]) -> None:
        self.grams = grams

    def __call__(self, text: str) -> str | None:
        runs = gram_hashes(words_of(text), GRAM_WORDS)
        at = np.minimum(np.searchsorted(self.grams, runs), len(self.grams) - 1)
        return "shares 13 words in a row with evaluation data" if (self.grams[at] == runs).any() else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
