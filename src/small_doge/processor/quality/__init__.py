"""Optional blocks that leave documents out for a stated reason: length, repetition, language, duplicates, test data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

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
    decontaminate: tuple[str, ...] = field(default=())

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
        ValueError: a key is unknown.
    """
    if isinstance(quality, QualityOptions):
        return quality
    given = dict(quality or {})
    known = [item.name for item in fields(QualityOptions)]
    for key in given:
        if key not in known:
            raise ValueError(f"quality has no option {key!r}: use {', '.join(known)}.")
    options: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in given.items()}
    return QualityOptions(**options)


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
