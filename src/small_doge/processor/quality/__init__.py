"""Optional blocks that leave documents out for a stated reason: length, repetition, language, duplicates, test data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from small_doge.processor.arguments import check_switch, check_whole_number
from small_doge.processor.documents import Document
from small_doge.processor.quality.decontamination import Decontamination, evaluation_grams
from small_doge.processor.quality.duplicates import ExactDuplicates, NearDuplicates
from small_doge.processor.quality.filters import language_filter, length_filter, repetition_filter
from small_doge.processor.report import Report

# A block says why a text is to be left out, or None to keep it.
Block = Callable[[str], str | None]


@dataclass(frozen=True)
class QualityOptions:
    """Which blocks to use; the default uses none.

    Attributes:
        min_characters, max_characters: documents outside are left out (`length_filter`).
        repetition: leave out texts that repeat themselves (`repetition_filter`).
        languages: keep only these, such as ("en", "zh") (`language_filter`).
        exact_duplicates: keep the first of equal texts (`ExactDuplicates`).
        near_duplicates: keep the first of nearly equal texts (`NearDuplicates`).
        decontaminate: files or folders of evaluation data that no document may share 13 words in a row with
            (`Decontamination`).
    """

    min_characters: int = 0
    max_characters: int | None = None
    repetition: bool = False
    languages: tuple[str, ...] = ()
    exact_duplicates: bool = False
    near_duplicates: bool = False
    decontaminate: tuple[str, ...] = ()

    def blocks(self) -> list[Block]:
        """New blocks, cheapest first; those against duplicates remember what they have seen."""
        blocks = self.first_blocks()
        if self.exact_duplicates:
            blocks.append(ExactDuplicates())
        blocks += self.costly_blocks()
        if self.near_duplicates:
            blocks.append(NearDuplicates())
        return blocks

    def first_blocks(self) -> list[Block]:
        """The blocks that come before those against duplicates."""
        if self.min_characters or self.max_characters is not None:
            return [length_filter(self.min_characters, self.max_characters)]
        return []

    def costly_blocks(self) -> list[Block]:
        """The blocks that judge each text alone and come after the one against exact duplicates."""
        blocks: list[Block] = []
        if self.languages:
            blocks.append(language_filter(self.languages))
        if self.repetition:
            blocks.append(repetition_filter)
        if self.decontaminate:
            blocks.append(Decontamination(evaluation_grams(self.decontaminate)))
        return blocks


def quality_options(quality: QualityOptions | Mapping[str, Any] | None) -> QualityOptions:
    """Options from a dict, such as a recipe's.

    Raises:
        ValueError: a key is unknown, or its value cannot be meant.
    """
    if isinstance(quality, QualityOptions):
        return quality
    if not isinstance(quality, (Mapping, type(None))):
        raise ValueError(f"quality is {quality!r}: give its options, such as exact_duplicates: true.")
    given = dict(quality or {})
    known = {item.name: item.default for item in fields(QualityOptions)}
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"quality has no option {key!r}: use {', '.join(known)}.")
        if isinstance(known[key], tuple):
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"quality's {key} is {value!r}: give a list, such as [{value}].")
            given[key] = tuple(value)
        elif isinstance(known[key], bool):
            check_switch(f"quality's {key}", value)
        elif value is not None:
            check_whole_number(f"quality's {key}", value, 0)
    return QualityOptions(**given)


def apply_blocks(
    documents: Iterable[Document], blocks: Sequence[Block], report: Report, source: str
) -> Iterator[Document]:
    """Pass on the documents that every block keeps; others are counted in `report` by the first block's reason."""
    for document in documents:
        reason = next((reason for block in blocks if (reason := block(document.text)) is not None), None)
        if reason is None:
            yield document
        else:
            report.kept[source] -= 1
            report.drop(source, reason, document.origin)
