"""Documents to token arrays, in chunks that several threads encode while the order stays that of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from small_doge.processor.documents import is_test
from small_doge.processor.encoding import Encoder
from small_doge.processor.report import Report

In = TypeVar("In")

CHUNK_CHARACTERS = 1 << 18
CHUNK_DOCUMENTS = 512
BLOCK_CHARACTERS = 1 << 25
BLOCK_ITEMS = 10_000


@dataclass
class Chunk:
    """Documents that are encoded together, and the report of the reading that brought them."""

    train: list[Any]
    test: list[Any]
    report: Report


def shuffle_blocks(items: Iterable[In], seed: Sequence[int], size: Callable[[In], int]) -> Iterator[In]:
    """Shuffle within blocks of up to 10,000 items or 32 million characters; memory holds one block."""
    source = iter(items)
    for number in count():
        block: list[In] = []
        characters = 0
        for item in source:
            block.append(item)
            characters += size(item)
            if len(block) >= BLOCK_ITEMS or characters >= BLOCK_CHARACTERS:
                break
        if not block:
            return
        for index in np.random.default_rng([*seed, number]).permutation(len(block)):
            yield block[index]


def chunk_documents(documents: Iterable[Any], report: Report, test_share: float) -> Iterator[Chunk]:
    """Group documents into chunks of about 256 thousand characters, always the same ones for the same input.

    Documents are `Document` or `EncodedDocument`, which tell their length and their place for the split alike.
    `report` is the one that the reading of `documents` counts in; each chunk takes its part of it.
    """
    train: list[Any] = []
    test: list[Any] = []
    characters = 0
    for document in documents:
        (test if is_test(document, test_share) else train).append(document)
        characters += document.characters
        if characters >= CHUNK_CHARACTERS or len(train) + len(test) >= CHUNK_DOCUMENTS:
            yield Chunk(train, test, report.take())
            train, test, characters = [], [], 0
    yield Chunk(train, test, report.take())


class DocumentEncoder:
    """Turns a document's text into its ids with one BOS before and one EOS after."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        bos, eos = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
        if eos is None:
            raise ValueError("processing_class has no EOS token, so documents could not end: set its eos_token.")
        self.bos, self.eos = bos, eos

    def __call__(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return self.encoder.encode_documents(texts, self.bos, self.eos)
