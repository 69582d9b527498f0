"""What was kept, what was dropped and why: every input is in train, in test, or counted here."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

REPORT_FILE = "data_report.json"
EXAMPLES_A_REASON = 20


class Report:
    """Counts that add up: `read` = `kept` + everything in `dropped`, for each source.

    Attributes:
        read: rows met, by source.
        kept: rows passed on, by source.
        dropped: rows left out, by source and reason.
        examples: the first places (`file:line`, with a detail) at which each reason was met.
        notes: one line for each thing that a person should know, such as a source that ran out.
        figures: measured totals and rates (tokens, rows, padding, ratios).
    """

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {}
        self.examples: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self.figures: dict[str, Any] = {}

    def drop(self, source: str, reason: str, origin: str, detail: str = "") -> None:
        """Count a row of `source` that is left out at `origin` (`file:line`)."""
        self.dropped.setdefault(source, Counter())[reason] += 1
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES_A_REASON:
            places.append(f"{origin}: {detail}" if detail else origin)

    def take(self) -> Report:
        """Hand over what was counted so far and start again from zero."""
        taken = Report()
        self.__dict__, taken.__dict__ = taken.__dict__, self.__dict__
        return taken

    def merge(self, other: Report) -> None:
        """Add the counts, examples and notes of another report."""
        self.read.update(other.read)
        self.kept.update(other.kept)
        for source, reasons in other.dropped.items():
            self.dropped.setdefault(source, Counter()).update(reasons)
        for reason, places in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine.extend(places[: EXAMPLES_A_REASON - len(mine)])
        for line in other.notes:
            self.note(line)

    def unkeep(self, source: str, count: int, reason: str) -> None:
        """Count rows that were kept so far as left out after all."""
        if count:
            self.kept[source] -= count
            self.dropped.setdefault(source, Counter())[reason] += count

    def note(self, line: str) -> None:
        """Remember one line for the reader; the same line is kept once."""
        if line not in self.notes:
            self.notes.append(line)

    def dropped_total(self, source: str | None = None) -> int:
        """Rows left out, of one source or of all."""
        if source is not None:
            return sum(self.dropped.get(source, Counter()).values())
        return sum(sum(reasons.values()) for reasons in self.dropped.values())

    def reasons(self, source: str) -> str:
        """What was left out of a source, in words."""
        dropped = self.dropped.get(source, Counter())
        return ", ".join(f"{reason} ({count:,})" for reason, count in dropped.most_common()) or "it is empty"

    def check(self) -> None:
        """Assert that nothing is lost: what was read was kept or dropped."""
        for source, read in self.read.items():
            kept, dropped = self.kept[source], self.dropped_total(source)
            assert read == kept + dropped, f"{source}: read {read}, kept {kept}, dropped {dropped}"

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "read": dict(self.read),
            "kept": dict(self.kept),
            "dropped": {source: dict(reasons) for source, reasons in self.dropped.items()},
            "examples": self.examples,
            "notes": self.notes,
            **self.figures,
        }

    def save(self, folder: str | Path) -> Path:
        """Write `data_report.json` into `folder` and return its path."""
        path = Path(folder) / REPORT_FILE
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """The report that `save` wrote into `folder`."""
        data = json.loads((Path(folder) / REPORT_FILE).read_text(encoding="utf-8"))
        report = cls()
        report.read, report.kept = Counter(data.pop("read")), Counter(data.pop("kept"))
        report.dropped = {source: Counter(reasons) for source, reasons in data.pop("dropped").items()}
        report.examples, report.notes = data.pop("examples"), data.pop("notes")
        report.figures = data
        return report

    def summary(self) -> str:
        """A few lines for a terminal: what was left out and why, padding and truncation, how exact the mix is."""
        lines = [
            f"read {sum(self.read.values()):,} rows, kept {sum(self.kept.values()):,}, "
            f"left out {self.dropped_total():,}"
        ]
        for source, reasons in self.dropped.items():
            lines += [f"  {source}: {count:,} {reason}" for reason, count in reasons.most_common()]
        for part in ("train", "test"):
            figures = self.figures.get(part, {})
            if figures.get("rows") and "tokens_out" in figures:
                lines.append(
                    f"{part}: {figures['rows']:,} rows, {figures['tokens_out']:,} tokens, "
                    f"padding {figures['padding_rate']:.2%}, truncation {figures['truncation_rate']:.2%}"
                )
        mix = self.figures.get("mix", {})
        if mix.get("largest_relative_error") is not None:
            lines.append(
                f"largest error of a share of the whole: {mix['largest_share_error']:.4%}, "
                f"relative to its ratio: {mix['largest_relative_error']:.4%}"
            )
        return "\n".join([*lines, *self.notes])
